package pacer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregfs/sregfs/backends"
	"github.com/sregfs/sregfs/test/bubble"
)

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func reply(r *http.Request, status int, header, body string) *http.Response {
	h := http.Header{}
	if k, v, ok := strings.Cut(header, ": "); ok {
		h.Set(k, v)
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)), Request: r}
}

// script answers the n-th request with the n-th step, then with 200.
type script struct {
	mu    sync.Mutex
	steps []func(*http.Request) (*http.Response, error)
	at    []time.Duration // when each request came, from the beginning
	body  []string
	begin time.Time
}

func newScript(steps ...func(*http.Request) (*http.Response, error)) *script {
	return &script{steps: steps, begin: time.Now()}
}

func status(code int, header string) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) { return reply(r, code, header, "fault"), nil }
}

func fails(err error) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body.Close()
	}
	s.mu.Lock()
	n := len(s.at)
	s.at = append(s.at, time.Since(s.begin))
	s.body = append(s.body, string(body))
	s.mu.Unlock()
	if n < len(s.steps) {
		return s.steps[n](r)
	}
	return reply(r, 200, "", "ok"), nil
}

func request(ctx context.Context, body string) *http.Request {
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, "POST", "http://service.test/x?key=sekret", r)
	if err != nil {
		panic(err)
	}
	return req
}

// do sends a request and reads its answer.
func do(p *Pacer, req *http.Request) (int, string, error) {
	resp, err := p.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func repeat(n int, step func(*http.Request) (*http.Response, error)) (steps []func(*http.Request) (*http.Response, error)) {
	for range n {
		steps = append(steps, step)
	}
	return steps
}

var (
	reset   = &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}
	dial    = &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	expired = &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}
	cert    = &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}
)

func TestOutcomes(t *testing.T) {
	once, noWait := Once, func(ctx context.Context) context.Context { return WithCeiling(ctx, 0) }
	for name, c := range map[string]struct {
		steps    []func(*http.Request) (*http.Response, error)
		ctx      func(context.Context) context.Context
		noReplay bool
		status   int
		err      error
		tries    int           // 0 where chance decides
		least    time.Duration // before the last try
		most     time.Duration // of the whole
	}{
		"fine":                        {status: 200, tries: 1},
		"a refusal is an answer":      {steps: repeat(1, status(404, "")), status: 404, tries: 1},
		"500":                         {steps: repeat(1, status(500, "")), status: 200, tries: 2, least: 250 * time.Millisecond, most: time.Second},
		"502, 503, 504":               {steps: append(append(repeat(1, status(502, "")), status(503, "")), status(504, "")), status: 200, tries: 4, most: 4 * time.Second},
		"501 does not pass":           {steps: repeat(1, status(501, "")), status: 501, tries: 1},
		"429 in seconds":              {steps: repeat(1, status(429, "Retry-After: 7")), status: 200, tries: 2, least: 7 * time.Second, most: 8 * time.Second},
		"429 without":                 {steps: repeat(1, status(429, "")), status: 200, tries: 2, least: 250 * time.Millisecond, most: time.Second},
		"429 by date":                 {steps: repeat(1, status(429, "Retry-After: Sat, 01 Jan 2000 00:00:09 GMT")), status: 200, tries: 2, least: 9 * time.Second, most: 10 * time.Second},
		"429 for too long":            {steps: repeat(1, status(429, "Retry-After: 300")), err: backends.ErrBusy, tries: 1},
		"429 for ever":                {steps: repeat(99, status(429, "Retry-After: 25")), err: backends.ErrBusy, tries: 3, most: 50 * time.Second},
		"403 that says when":          {steps: repeat(2, status(403, "Retry-After: 2")), status: 200, tries: 3, least: 4 * time.Second, most: 5 * time.Second},
		"403 is handed on":            {steps: repeat(1, status(403, "")), status: 403, tries: 1},
		"503 for ever":                {steps: repeat(99, status(503, "")), err: backends.ErrUnreachable, most: 60 * time.Second},
		"reset":                       {steps: repeat(2, fails(reset)), status: 200, tries: 3, most: 3 * time.Second},
		"reset for ever":              {steps: repeat(99, fails(reset)), err: backends.ErrUnreachable, most: 60 * time.Second},
		"silence, then an answer":     {steps: repeat(1, hangs), ctx: func(ctx context.Context) context.Context { return WithCeiling(ctx, 2*time.Minute) }, status: 200, tries: 2, least: time.Minute, most: 62 * time.Second},
		"silence":                     {steps: repeat(99, hangs), err: backends.ErrUnreachable, tries: 1, most: time.Minute},
		"expired certificate":         {steps: repeat(9, fails(expired)), err: backends.ErrUntrusted, tries: 1},
		"untrusted certificate":       {steps: repeat(9, fails(cert)), err: backends.ErrUntrusted, tries: 1},
		"credentials":                 {steps: repeat(9, fails(backends.ErrAuth)), err: backends.ErrAuth, tries: 1},
		"ceiling 0":                   {steps: repeat(9, status(503, "")), ctx: noWait, err: backends.ErrUnreachable, tries: 1},
		"once: reset":                 {steps: repeat(9, fails(reset)), ctx: once, err: backends.ErrUnreachable, tries: 1},
		"once: never connected":       {steps: repeat(1, fails(dial)), ctx: once, status: 200, tries: 2, most: time.Second},
		"once: refused for its rate":  {steps: repeat(1, status(429, "")), ctx: once, status: 200, tries: 2, most: time.Second},
		"once: 500 is handed on":      {steps: repeat(1, status(500, "")), ctx: once, status: 500, tries: 1},
		"no replay: 503 is handed on": {steps: repeat(1, status(503, "")), noReplay: true, status: 503, tries: 1},
		"no replay: reset":            {steps: repeat(9, fails(reset)), noReplay: true, err: backends.ErrUnreachable, tries: 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := newScript(c.steps...)
				p := New(s, Options{})
				ctx := t.Context()
				if c.ctx != nil {
					ctx = c.ctx(ctx)
				}
				req := request(ctx, "the body")
				if c.noReplay {
					req.GetBody = nil
				}
				code, _, err := do(p, req)
				took := time.Since(s.begin)
				if !errors.Is(err, c.err) || code != c.status {
					t.Fatalf("got %d, %v; want %d, %v", code, err, c.status, c.err)
				}
				if c.tries != 0 && len(s.at) != c.tries {
					t.Errorf("%d tries at %v, want %d", len(s.at), s.at, c.tries)
				}
				if last := s.at[len(s.at)-1]; last < c.least || took > c.most {
					t.Errorf("last try after %v (at least %v), all took %v (at most %v)", last, c.least, took, c.most)
				}
				for i, b := range s.body {
					if b != "the body" {
						t.Errorf("try %d sent body %q", i+1, b)
					}
				}
				if untrusted := errors.Is(c.err, backends.ErrUntrusted); untrusted != errors.Is(err, backends.ErrUntrusted) ||
					untrusted && !errors.Is(err, backends.ErrUnreachable) {
					t.Errorf("%v is of the wrong kind", err)
				}
				if err != nil && strings.Contains(err.Error(), "sekret") {
					t.Errorf("the error tells the query: %v", err)
				}
				st := p.Stats()
				if st.Active != 0 || st.Waiting != 0 {
					t.Errorf("slots are still held: %+v", st)
				}
				if st.Requests != int64(len(s.at)) || st.Retries != st.Requests-1 {
					t.Errorf("counters %+v after %d tries", st, len(s.at))
				}
				if gave := errors.As(err, new(*Error)); (st.GaveUp == 1) != gave {
					t.Errorf("GaveUp = %d with error %v", st.GaveUp, err)
				}
			})
		})
	}
}

// TestPauseIsForTheWholeAccount: while one request has been told to wait,
// no other goes out, and then demand goes before background.
func TestPauseIsForTheWholeAccount(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newScript(status(429, "Retry-After: 20"))
		p := New(s, Options{Concurrency: 1})
		var wg sync.WaitGroup
		send := func(name string, ctx context.Context) {
			wg.Go(func() {
				if _, _, err := do(p, request(ctx, name)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
			synctest.Wait()
		}
		send("first", t.Context())
		send("background", Background(t.Context()))
		send("demand", t.Context())
		if st := p.Stats(); st.Requests != 1 || st.Waiting != 3 || time.Until(st.PausedUntil) != 20*time.Second {
			t.Errorf("during the pause: %+v", st)
		}
		// What may not wait that long fails at once.
		begin := time.Now()
		_, _, err := do(p, request(WithCeiling(t.Context(), 5*time.Second), ""))
		if !errors.Is(err, backends.ErrBusy) || time.Since(begin) != 0 {
			t.Errorf("a short ceiling: %v after %v, want ErrBusy at once", err, time.Since(begin))
		}
		wg.Wait()
		if got := strings.Join(s.body, " "); got != "first first demand background" {
			t.Errorf("order %q", got)
		}
		for _, at := range s.at[1:] {
			if at < 20*time.Second {
				t.Errorf("a request went out after %v, during the pause", at)
			}
		}
	})
}

// TestALongerPauseReachesWhoWaits: whoever is already waiting fails when a
// pause outgrows its ceiling.
func TestALongerPauseReachesWhoWaits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := newGate(1)
		g.pause(10 * time.Second)
		got := make(chan error)
		go func() { _, err := g.enter(t.Context(), demand, 15*time.Second); got <- err }()
		synctest.Wait()
		g.pause(30 * time.Second)
		var paused *pausedError
		if err := <-got; !errors.As(err, &paused) {
			t.Errorf("enter = %v, want pausedError", err)
		}
		if _, waiting, _ := g.state(); waiting != 0 {
			t.Error("it is still in the queue")
		}
	})
}

// TestEveryWaitEnds: whoever stops to wait hears of that, and whose time has run
// out of what was the matter, where that is known.
func TestEveryWaitEnds(t *testing.T) {
	for name, c := range map[string]struct {
		step func(*http.Request) (*http.Response, error)
		err  error
	}{
		"back-off":   {status(500, ""), backends.ErrUnreachable},
		"pause":      {status(429, "Retry-After: 30"), backends.ErrBusy},
		"silence":    {hangs, context.DeadlineExceeded},
		"no network": {fails(dial), dial},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				p := New(newScript(repeat(9, c.step)...), Options{})
				begin := time.Now()
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(100*time.Millisecond, cancel)
				_, _, err := do(p, request(ctx, ""))
				if err != context.Canceled || time.Since(begin) != 100*time.Millisecond {
					t.Errorf("cancelled: %v after %v", err, time.Since(begin))
				}
				p = New(newScript(repeat(9, c.step)...), Options{})
				begin = time.Now()
				ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				_, _, err = do(p, request(ctx, ""))
				if !errors.Is(err, c.err) || time.Since(begin) != 100*time.Millisecond {
					t.Errorf("got %v after %v", err, time.Since(begin))
				}
				if st := p.Stats(); st.Active != 0 || st.Waiting != 0 {
					t.Errorf("slots are still held: %+v", st)
				}
			})
		})
	}
}

// TestNoAnswer: many want something of a host that does not answer. It is asked
// seldom, each of them learns why, and once it is back all get what they wanted.
func TestNoAnswer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		back, asked, others := false, 0, 0
		p := New(transport(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			if r.URL.Host != "service.test" {
				others++
				return reply(r, 200, "", "ok"), nil
			}
			asked++
			if !back {
				return nil, dial
			}
			return reply(r, 200, "", "ok"), nil
		}), Options{Concurrency: 4})
		for minute := range 5 {
			for range 12 {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						if _, _, err := do(p, request(ctx, "")); !errors.Is(err, dial) {
							t.Errorf("minute %d: %v", minute, err)
						}
					})
				}
				elsewhere := request(ctx, "")
				elsewhere.URL.Host = "other.test"
				if _, _, err := do(p, elsewhere); err != nil {
					t.Error("another host:", err)
				}
				wg.Wait()
				cancel()
			}
		}
		if asked > 200 || others != 60 {
			t.Errorf("asked %d times in five minutes, the other host %d times", asked, others)
		}
		if err := p.Unreachable("http://service.test/x"); !errors.Is(err, dial) || !errors.Is(err, backends.ErrUnreachable) {
			t.Errorf("meanwhile it says %v", err)
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, _, err := do(p, request(t.Context(), "")); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(10 * time.Second)
		mu.Lock()
		back, asked = true, 0
		mu.Unlock()
		begin := time.Now()
		if _, _, err := do(p, request(t.Context(), "")); err != nil || time.Since(begin) > maxKnock {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		wg.Wait()
		if d := time.Since(begin); d > maxKnock {
			t.Errorf("those who waited heard of it after %v", d)
		}
		if asked != 21 {
			t.Errorf("asked %d times for 21 answers", asked)
		}
		if st := p.Stats(); st.Active != 0 || st.Waiting != 0 || p.Unreachable("http://service.test/x") != nil {
			t.Errorf("afterwards %+v, %v", st, p.Unreachable("http://service.test/x"))
		}
	})
}

// TestKnockAtTheEnd: whose time runs out at the moment of a knock leaves it to the
// next, and whose time runs out while knocking learns what others have met.
func TestKnockAtTheEnd(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		down, hangs := true, false
		p := New(transport(func(r *http.Request) (*http.Response, error) {
			switch {
			case hangs:
				<-r.Context().Done()
				return nil, r.Context().Err()
			case down:
				return nil, dial
			}
			return reply(r, 200, "", "ok"), nil
		}), Options{})
		for range deafAfter {
			if _, _, err := do(p, request(WithCeiling(t.Context(), 0), "")); !errors.Is(err, dial) {
				t.Fatal(err)
			}
		}
		time.Sleep(maxKnock)

		over, cancel := context.WithDeadline(t.Context(), time.Now())
		defer cancel()
		if _, met, ok := p.reach.enter(over, target{"service.test", demand}, time.Minute); ok || met != dial {
			t.Errorf("without time left: %v, may knock: %v", met, ok)
		}
		hangs = true
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := do(p, request(short, "")); !errors.Is(err, dial) {
			t.Errorf("a knock without an answer in time: %v", err)
		}
		down, hangs = false, false
		time.Sleep(maxKnock)
		if _, _, err := do(p, request(t.Context(), "")); err != nil {
			t.Error(err)
		}
	})
}

// TestCutOffUploads: a host that answers reads and cuts uploads off is knocked at
// with uploads alone.
func TestCutOffUploads(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := New(transport(func(r *http.Request) (*http.Response, error) {
			time.Sleep(10 * time.Millisecond)
			if r.Body != nil {
				return nil, reset
			}
			return reply(r, 200, "", "ok"), nil
		}), Options{})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _, _ = do(p, request(Background(ctx), "part"))
				}
			})
		}
		time.Sleep(time.Minute)
		for range 20 {
			time.Sleep(time.Second)
			begin := time.Now()
			if _, _, err := do(p, request(ctx, "")); err != nil || time.Since(begin) > time.Second {
				t.Errorf("a read: %v after %v", err, time.Since(begin))
			}
		}
		if err := p.Unreachable("http://service.test/x"); err != nil {
			t.Error("it is said not to answer:", err)
		}
		cancel()
		wg.Wait()
	})
}

// unreadable is a body on a broken disk.
type unreadable struct{ io.Closer }

func (unreadable) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestUnreadableBody: that a request cannot be read is not its host's fault.
func TestUnreadableBody(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := New(transport(func(r *http.Request) (*http.Response, error) {
			if _, err := io.ReadAll(r.Body); err != nil {
				return nil, err
			}
			return reply(r, 200, "", "ok"), nil
		}), Options{})
		req := request(t.Context(), "x")
		req.GetBody = func() (io.ReadCloser, error) { return unreadable{io.NopCloser(nil)}, nil }
		req.Body, _ = req.GetBody()
		if _, _, err := do(p, req); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Error(err)
		}
		if err := p.Unreachable("http://service.test/x"); err != nil {
			t.Error(err)
		}
	})
}

type closed struct {
	io.Reader
	done *bool
}

func (c closed) Close() error { *c.done = true; return nil }

func TestBodyIsClosedThoughNothingWasSent(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := false
	req := request(ctx, "")
	req.Body = closed{strings.NewReader("x"), &done}
	if _, err := New(newScript(), Options{}).RoundTrip(req); !errors.Is(err, context.Canceled) {
		t.Errorf("RoundTrip = %v", err)
	}
	if !done {
		t.Error("the body was left open")
	}
}

// TestSlots: a body holds its slot until it is read or closed, demand goes
// before background, a slot is kept free of background, and long polls need
// none.
func TestSlots(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := New(newScript(), Options{Concurrency: 2})
		get := func(ctx context.Context) <-chan *http.Response {
			ch := make(chan *http.Response, 1)
			go func() {
				resp, err := p.RoundTrip(request(ctx, ""))
				if err != nil {
					t.Error(err)
				}
				ch <- resp
			}()
			synctest.Wait()
			return ch
		}
		want := func(ch <-chan *http.Response, let bool, what string) {
			t.Helper()
			synctest.Wait()
			if got := len(ch) == 1; got != let {
				t.Errorf("%s: answered = %v, want %v", what, got, let)
			}
		}
		ahead := get(Background(t.Context()))
		want(ahead, true, "first background")
		ahead2 := get(Background(t.Context()))
		want(ahead2, false, "second background, whose slot is kept for demand")
		read := get(t.Context())
		want(read, true, "first demand")
		read2 := get(t.Context())
		want(read2, false, "second demand with all slots taken")
		poll := get(LongPoll(t.Context()))
		want(poll, true, "long poll")

		(<-ahead).Body.Close()
		want(read2, true, "demand, when background gave its slot back")
		want(ahead2, false, "background behind it")
		io.ReadAll((<-read).Body)
		want(ahead2, true, "background, when a body was read to its end")
		third := get(t.Context())
		want(third, false, "third demand")
		time.Sleep(idleSlot + time.Second)
		want(third, true, "third demand, when nobody read the others' bodies")
		for _, ch := range []<-chan *http.Response{read2, ahead2, third, poll} {
			(<-ch).Body.Close()
		}
		if st := p.Stats(); st.Active != 0 {
			t.Errorf("after all: %+v", st)
		}
	})
}

func TestWatchdog(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var pw *io.PipeWriter
		p := New(transport(func(r *http.Request) (*http.Response, error) {
			var pr *io.PipeReader
			pr, pw = io.Pipe()
			context.AfterFunc(r.Context(), func() { pw.CloseWithError(r.Context().Err()) })
			resp := reply(r, 200, "", "")
			resp.Body = pr
			return resp, nil
		}), Options{Concurrency: 1})
		resp, err := p.RoundTrip(request(t.Context(), ""))
		if err != nil {
			t.Fatal(err)
		}
		// A slow connection that moves is left alone, and so is a slow reader.
		go func() {
			for range 5 {
				time.Sleep(50 * time.Second)
				pw.Write([]byte("x"))
			}
		}()
		buf := make([]byte, 1)
		for i := range 5 {
			if _, err := resp.Body.Read(buf); err != nil {
				t.Fatalf("read %d: %v", i, err)
			}
		}
		time.Sleep(10 * time.Minute)
		begin := time.Now()
		_, err = resp.Body.Read(buf)
		if !errors.Is(err, backends.ErrUnreachable) || errors.Is(err, context.Canceled) || time.Since(begin) != time.Minute {
			t.Errorf("stalled read: %v after %v, want ErrUnreachable after 1m", err, time.Since(begin))
		}
		resp.Body.Close()

		// The same body of a long poll may take as long as it likes.
		resp, err = p.RoundTrip(request(LongPoll(t.Context()), ""))
		if err != nil {
			t.Fatal(err)
		}
		go func() { time.Sleep(time.Hour); pw.Write([]byte("x")) }()
		if _, err := resp.Body.Read(buf); err != nil {
			t.Errorf("long poll: %v", err)
		}
		resp.Body.Close()
	})
}

// TestSlowUploadIsNotSilence: a request's body that is being taken, however
// slowly, keeps the watchdog away.
func TestSlowUploadIsNotSilence(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := New(transport(func(r *http.Request) (*http.Response, error) {
			buf := make([]byte, 1)
			for {
				time.Sleep(40 * time.Second)
				if _, err := r.Body.Read(buf); err != nil {
					break
				}
			}
			if r.Context().Err() != nil {
				return nil, r.Context().Err()
			}
			return reply(r, 200, "", ""), nil
		}), Options{})
		if _, _, err := do(p, request(t.Context(), "five.")); err != nil {
			t.Error(err)
		}
	})
}

func TestClassify(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const contended = "too_many_write_operations: a body that is longer than what is looked at"
		s := newScript(
			func(r *http.Request) (*http.Response, error) { return reply(r, 429, "", contended), nil },
			func(r *http.Request) (*http.Response, error) {
				return reply(r, 403, "", "insufficient: the whole body"), nil
			},
		)
		p := New(s, Options{Classify: func(resp *http.Response) Decision {
			if resp.StatusCode == 429 && strings.HasPrefix(string(Peek(resp, 25)), "too_many_write_operations") {
				return Decision{Contended, 3 * time.Second}
			}
			if resp.StatusCode == 403 && string(Peek(resp, 4)) == "rate" {
				return Decision{Fault: Limited}
			}
			return Default(resp)
		}})
		code, body, err := do(p, request(t.Context(), ""))
		if code != 403 || body != "insufficient: the whole body" || err != nil {
			t.Errorf("got %d %q %v", code, body, err)
		}
		if s.at[1] != 3*time.Second {
			t.Errorf("second try after %v, want 3s", s.at[1])
		}
		if st := p.Stats(); st.Limited != 0 || st.Faults != 1 {
			t.Errorf("a contended request limited the account: %+v", st)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for _, c := range []struct {
		after, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"12", "", 12 * time.Second},
		{"0.5", "", 500 * time.Millisecond},
		{"-3", "", 0},
		{"NaN", "", 0},
		{"1e300", "", 24 * time.Hour},
		{"soon", "", 0},
		{"Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 30 * time.Second},
		{"Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:30 GMT", 0},
	} {
		h := http.Header{"Retry-After": {c.after}, "Date": {c.date}}
		if got := RetryAfter(&http.Response{Header: h}); got != c.want {
			t.Errorf("RetryAfter(%q, Date %q) = %v, want %v", c.after, c.date, got, c.want)
		}
	}
}

// TestManyAtOnce keeps to the limit with a crowd, some of whom give up.
func TestManyAtOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most := 0, 0
		p := New(transport(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(10 * time.Millisecond)
			mu.Lock()
			now--
			mu.Unlock()
			return reply(r, 200, "", "x"), nil
		}), Options{Concurrency: 3})
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*3*time.Millisecond)
				defer cancel()
				if i%3 == 0 {
					ctx = Background(ctx)
				}
				do(p, request(ctx, ""))
			})
		}
		wg.Wait()
		if most != 3 {
			t.Errorf("%d at once, want 3", most)
		}
		if st := p.Stats(); st.Active != 0 || st.Waiting != 0 {
			t.Errorf("after all: %+v", st)
		}
	})
}

// FuzzRetryAfter: whatever a service says, the account pauses for a day at most.
func FuzzRetryAfter(f *testing.F) {
	f.Add(429, "7", "")
	f.Add(503, "Sat, 01 Jan 2000 00:00:09 GMT", "Sat, 01 Jan 2000 00:00:00 GMT")
	f.Add(403, "1e300", "")
	f.Add(429, "NaN", "x")
	f.Add(500, "Mon, 01 Jan 0001 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT")
	f.Fuzz(func(t *testing.T, status int, after, date string) {
		resp := &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {after}, "Date": {date}}}
		if d := Default(resp); d.After < 0 || d.After > 24*time.Hour {
			t.Errorf("%d, Retry-After %q at %q: a pause of %v", status, after, date, d.After)
		}
	})
}
