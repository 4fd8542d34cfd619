// Package backendtest proves stores: Run is the suite that every client passes
// over its service's emulator or the real thing. It also has a whole store in
// memory (Memory) and wrappers that make any store slow, flaky or counted
// (Slow, Flaky, Counting), for tests of what is built upon stores.
//
// It knows the vocabulary of package backends alone. Start at Run.
package backendtest
