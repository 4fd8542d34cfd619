package lru

import "testing"

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	c := New[int, string](2)
	c.Add(1, "one")
	c.Add(2, "two")
	if v, ok := c.Get(1); !ok || v != "one" {
		t.Fatalf("Get(1) = %q, %v, want one, true", v, ok)
	}
	c.Add(3, "three")
	if v, ok := c.Get(2); ok {
		t.Errorf("Get(2) = %q, true after it was the oldest of a full cache", v)
	}
	c.Add(1, "uno")
	for k, want := range map[int]string{1: "uno", 3: "three"} {
		if v, ok := c.Get(k); !ok || v != want {
			t.Errorf("Get(%d) = %q, %v, want %q, true", k, v, ok, want)
		}
	}
}
