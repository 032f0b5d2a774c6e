package cluster

import "testing"

// Of calls that go on from one replica at the same time the first decides where to.
func TestUseDoesNotMoveTwice(t *testing.T) {
	r := newReplicas("a,b,c")
	was, urls := r.order(false)
	if !r.promote(was, urls[1]) {
		t.Error("it did not move")
	}
	if r.promote(was, urls[2]) {
		t.Error("it moved again, for a call that began before")
	}
	if now, _ := r.order(false); now != urls[1] {
		t.Errorf("now at %s, want %s", now, urls[1])
	}
}
