package pacer

import (
	"context"
	"time"
)

type marksKey struct{}

// marks are what a context says of its requests.
type marks struct {
	class      class
	once       bool
	ceiling    time.Duration
	ceilingSet bool
}

func marksOf(ctx context.Context) marks {
	m, _ := ctx.Value(marksKey{}).(marks)
	return m
}

func mark(ctx context.Context, set func(*marks)) context.Context {
	m := marksOf(ctx)
	set(&m)
	return context.WithValue(ctx, marksKey{}, m)
}

// Background marks requests that nobody waits for, read-ahead above all.
// Slots go to all others first, and a quarter of the slots, at least one when
// there are two, is never given to background requests.
func Background(ctx context.Context) context.Context {
	return mark(ctx, func(m *marks) { m.class = background })
}

// LongPoll marks requests that the service answers only when something has
// happened. They take no slot, though they honour a pause, and their response
// may be as long in coming as it likes.
func LongPoll(ctx context.Context) context.Context {
	return mark(ctx, func(m *marks) { m.class = longPoll })
}

// Once marks requests that must not be acted on twice. They are sent again
// only when the first was certainly not acted on: the service refused it for
// its rate, or no connection came about.
func Once(ctx context.Context) context.Context {
	return mark(ctx, func(m *marks) { m.once = true })
}

// WithCeiling sets what each of the requests may wait in all for the service
// to come round, in place of Options.Ceiling. With 0 each is sent once,
// or not at all between two knocks at a host that has stopped to answer. Time
// spent waiting for a slot, or on a connection that moves, does not count.
func WithCeiling(ctx context.Context, d time.Duration) context.Context {
	return mark(ctx, func(m *marks) { m.ceiling, m.ceilingSet = d, true })
}
