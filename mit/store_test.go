package mit_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/mimiktech/cluster/mit"
)

func TestRegistrationEntry(t *testing.T) {
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.FixedZone("", 3600))
	reg := mit.Registration{Type: "mds", ServerID: "a", ClusterBaseURL: "http://10.0.0.1"}
	first, err := reg.Entry(nil, t0)
	if err != nil {
		t.Fatal(err)
	}
	if want := t0.UTC().Truncate(time.Millisecond); first.CreatedAt != want || first.UpdatedAt != want {
		t.Errorf("a new entry has %v, %v, want %v", first.CreatedAt, first.UpdatedAt, want)
	}
	const want = `{"serverId":"a","clusterBaseUrl":"http://10.0.0.1","createdAt":"2026-01-02T02:04:05.678Z","updatedAt":"2026-01-02T02:04:05.678Z"}`
	if string(first.Raw) != want {
		t.Errorf("Raw = %s, want %s", first.Raw, want)
	}
	for _, now := range []time.Time{t0, t0.Add(-time.Hour), t0.Add(99 * time.Microsecond)} {
		next, err := reg.Entry(&first, now)
		if err != nil {
			t.Fatal(err)
		}
		if next.CreatedAt != first.CreatedAt || next.UpdatedAt != first.UpdatedAt.Add(time.Millisecond) {
			t.Errorf("renewed at %v: %v after %v", now, next.UpdatedAt, first.UpdatedAt)
		}
	}
	reg.Location = json.RawMessage("{")
	if _, err := reg.Entry(nil, t0); err == nil || !strings.Contains(err.Error(), `location of server "a" is not JSON`) {
		t.Errorf("invalid location: %v", err)
	}
}

// The id is part of the contract: nodes that outlive the registry still match it.
func TestResourceID(t *testing.T) {
	const want = "09d8f1f0-7477-5c54-9770-74879a6d3b25"
	if got := mit.ResourceID("mds"); got != want {
		t.Errorf("ResourceID(mds) = %s, want %s", got, want)
	}
	if mit.ResourceID("mds") == mit.ResourceID("MDS") {
		t.Error("types that differ in case share a resource")
	}
}
