package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A row is one piece of work and those who do it.
type row struct {
	name string // short, without spaces: for ROW= and the plot
	what string // the work, for a reader
	goal string // what the project promises of it
	// prepare makes what all contestants need. It returns what each does; the
	// first is sregfs.
	prepare func(ctx context.Context, l *lab) ([]contestant, error)
	// met says whether the goal is reached, from the summary.
	met func(r result) bool
	// parts says that the contestants are all sregfs and do different things:
	// their times are not compared.
	parts bool
}

// A contestant does the work once at a time.
type contestant struct {
	name string
	// before sets up a repetition and is not measured; may be nil.
	before func(ctx context.Context) error
	// work is measured. What it fills into the sample is kept; its Seconds, if
	// it leaves them at 0, are the time it took.
	work func(ctx context.Context, s *sample) error
	// after cleans up a repetition and is not measured; may be nil. It may add
	// to the sample what can only be known then.
	after func(ctx context.Context, s *sample) error
}

// sample is one repetition.
type sample struct {
	Seconds  float64 `json:"seconds"`
	Bytes    int64   `json:"bytes,omitempty"`    // over the network
	Requests int64   `json:"requests,omitempty"` // to the store
	Memory   int64   `json:"memory,omitempty"`   // the daemon's peak, bytes
	Disk     int64   `json:"disk,omitempty"`     // what its databases take, bytes
}

// result is a measured row.
type result struct {
	Name    string    `json:"name"`
	What    string    `json:"what"`
	Goal    string    `json:"goal"`
	Met     bool      `json:"met"`
	Entries []summary `json:"contestants"`
	Failure string    `json:"failure,omitempty"`
}

// summary is what one contestant did.
type summary struct {
	Name    string   `json:"name"`
	Samples []sample `json:"samples"`
	Median  sample   `json:"median"` // of each figure by itself
	// Ratio is this contestant's median time over sregfs's: above 1 it is
	// slower than sregfs. 0 where the two did different things.
	Ratio float64 `json:"ratio,omitempty"`
}

// of returns the named contestant's summary, the zero one when there is none.
func (r result) of(name string) summary {
	for _, e := range r.Entries {
		if e.Name == name {
			return e
		}
	}
	return summary{}
}

// measure runs a row: every contestant once, then all again, so that what
// changes on the machine meanwhile hits all alike.
func (l *lab) measure(ctx context.Context, r row, repeat int) (result, error) {
	res := result{Name: r.name, What: r.what, Goal: r.goal}
	defer l.reset()
	all, err := r.prepare(ctx, l)
	if err != nil {
		return res, fmt.Errorf("prepare: %w", err)
	}
	for _, c := range all {
		res.Entries = append(res.Entries, summary{Name: c.name})
	}
	for n := range repeat {
		for i, c := range all {
			s, err := once(ctx, c)
			if err != nil {
				return res, fmt.Errorf("%s, repetition %d: %w", c.name, n+1, err)
			}
			fmt.Fprintf(os.Stderr, "  %-28s %s\n", c.name, s)
			res.Entries[i].Samples = append(res.Entries[i].Samples, s)
		}
	}
	for i := range res.Entries {
		e := &res.Entries[i]
		e.Median = median(e.Samples)
		if first := res.Entries[0].Median.Seconds; first > 0 && !r.parts {
			e.Ratio = e.Median.Seconds / first
		}
	}
	res.Met = r.met(res)
	return res, nil
}

func once(ctx context.Context, c contestant) (s sample, err error) {
	if c.before != nil {
		if err := c.before(ctx); err != nil {
			return s, err
		}
	}
	if err := backMemory(); err != nil {
		return s, err
	}
	start := time.Now()
	err = c.work(ctx, &s)
	if s.Seconds == 0 {
		s.Seconds = time.Since(start).Seconds()
	}
	if c.after != nil {
		if aerr := c.after(ctx, &s); err == nil {
			err = aerr
		}
	}
	return s, err
}

// backMemory has the machine's host back memory that is free here. A virtual
// machine may hand free memory back (free page reporting), and the host then
// takes its time at the first use of each page: whoever's turn came right after
// a pause paid for it.
func backMemory() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("free memory: %w", err)
	}
	// In a file that nobody maps: our own memory would count as that of the
	// programs that we start.
	fd, err := unix.MemfdCreate("free", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("touching free memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "free memory")
	defer f.Close()
	zeros := make([]byte, 1<<20)
	for range min(uint64(info.Freeram)*uint64(info.Unit)/4, 2<<30) >> 20 {
		if _, err := f.Write(zeros); err != nil {
			return fmt.Errorf("touching free memory: %w", err)
		}
	}
	return nil
}

func median(samples []sample) sample {
	of := func(f func(sample) float64) float64 {
		v := make([]float64, 0, len(samples))
		for _, s := range samples {
			v = append(v, f(s))
		}
		slices.Sort(v)
		switch n := len(v); {
		case n == 0:
			return 0
		case n%2 == 1:
			return v[n/2]
		default:
			return (v[n/2-1] + v[n/2]) / 2
		}
	}
	return sample{
		Seconds:  of(func(s sample) float64 { return s.Seconds }),
		Bytes:    int64(of(func(s sample) float64 { return float64(s.Bytes) })),
		Requests: int64(of(func(s sample) float64 { return float64(s.Requests) })),
		Memory:   int64(of(func(s sample) float64 { return float64(s.Memory) })),
		Disk:     int64(of(func(s sample) float64 { return float64(s.Disk) })),
	}
}

func (s sample) String() string {
	out := seconds(s.Seconds)
	if s.Bytes > 0 {
		out += "  " + size(s.Bytes)
	}
	if s.Requests > 0 {
		out += fmt.Sprintf("  %d requests", s.Requests)
	}
	if s.Memory > 0 {
		out += fmt.Sprintf("  %s memory", size(s.Memory))
	}
	if s.Disk > 0 {
		out += fmt.Sprintf("  %s on disk", size(s.Disk))
	}
	return out
}

// seconds prints a time with three significant digits.
func seconds(s float64) string {
	switch {
	case s < 0.001:
		return fmt.Sprintf("%.0f us", s*1e6)
	case s < 1:
		return fmt.Sprintf("%.3g ms", s*1e3)
	default:
		return fmt.Sprintf("%.2f s", s)
	}
}

func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	default:
		return fmt.Sprintf("%.0f kB", float64(n)/1e3)
	}
}
