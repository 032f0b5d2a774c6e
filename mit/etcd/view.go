package etcd

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// A view is what the keys of a store say at one revision. It knows no clock, no lock and no network.
type view struct {
	keys      keys
	revision  int64
	resources map[string]*resource // by id
	// foreign is what stands among the keys and is none of ours, or cannot be read, and why.
	foreign map[string]error
}

// A resource is there as long as its own key or one of its servers is.
type resource struct {
	typ, publicBaseURL string
	named              bool     // has a key of its own
	entries            []*entry // sorted by id; each is replaced, never changed
}

type entry struct {
	cluster.Server
	revision int64 // of its last change
}

func newView(k keys, revision int64, kvs []*mvccpb.KeyValue) *view {
	v := &view{keys: k, revision: revision, resources: map[string]*resource{}, foreign: map[string]error{}}
	for _, kv := range kvs {
		v.put(kv)
	}
	return v
}

// put takes in what a key says now.
func (v *view) put(kv *mvccpb.KeyValue) {
	key := string(kv.Key)
	delete(v.foreign, key)
	id, typ, serverID, err := v.keys.parse(key)
	switch {
	case err != nil:
	case id != "":
		var value resourceValue
		if value, err = decodeResource(id, kv.Value); err == nil {
			r := v.made(value.Type)
			r.named, r.publicBaseURL = true, value.PublicBaseURL
		} else {
			v.unname(id)
		}
	default:
		var s cluster.Server
		if s, err = decodeServer(serverID, kv.Value); err == nil {
			r := v.made(typ)
			e := &entry{s, kv.ModRevision}
			if i, known := r.find(serverID); known {
				r.entries[i] = e
			} else {
				r.entries = slices.Insert(r.entries, i, e)
			}
		} else {
			v.drop(typ, serverID)
		}
	}
	if err != nil {
		v.foreign[key] = err
	}
}

// remove takes in that a key is gone, and returns the server that went with it, if one did.
func (v *view) remove(key string) (typ, serverID string, gone bool) {
	delete(v.foreign, key)
	id, typ, serverID, err := v.keys.parse(key)
	if err != nil {
		return "", "", false
	}
	if id != "" {
		v.unname(id)
		return "", "", false
	}
	return typ, serverID, v.drop(typ, serverID)
}

func (v *view) made(typ string) *resource {
	id := mit.ResourceID(typ)
	r := v.resources[id]
	if r == nil {
		r = &resource{typ: typ}
		v.resources[id] = r
	}
	return r
}

func (v *view) unname(id string) {
	if r := v.resources[id]; r != nil {
		r.named, r.publicBaseURL = false, ""
		v.forgetEmpty(id)
	}
}

func (v *view) drop(typ, serverID string) bool {
	id := mit.ResourceID(typ)
	r := v.resources[id]
	if r == nil {
		return false
	}
	i, known := r.find(serverID)
	if known {
		r.entries = slices.Delete(r.entries, i, i+1)
		v.forgetEmpty(id)
	}
	return known
}

func (v *view) forgetEmpty(id string) {
	if r := v.resources[id]; !r.named && len(r.entries) == 0 {
		delete(v.resources, id)
	}
}

// entry is the server as last seen, nil if it is not there.
func (v *view) entry(typ, serverID string) *entry {
	r := v.resources[mit.ResourceID(typ)]
	if r == nil {
		return nil
	}
	if i, known := r.find(serverID); known {
		return r.entries[i]
	}
	return nil
}

func (r *resource) find(serverID string) (int, bool) {
	return slices.BinarySearchFunc(r.entries, serverID, func(e *entry, id string) int {
		return cmp.Compare(e.ServerID, id)
	})
}

// snapshot is a copy that shares nothing with r, in few allocations however many servers there are.
func (r *resource) snapshot() mit.Resource {
	size := 0
	for _, e := range r.entries {
		size += len(e.Location)
	}
	locations := make([]byte, 0, size)
	servers := make([]cluster.Server, len(r.entries), len(r.entries)+1) // see with
	for i, e := range r.entries {
		servers[i] = e.Server
		if e.Location != nil {
			start := len(locations)
			locations = append(locations, e.Location...)
			servers[i].Location = locations[start:len(locations):len(locations)]
		}
	}
	return mit.Resource{ID: mit.ResourceID(r.typ), Type: r.typ, PublicBaseURL: r.publicBaseURL, Servers: servers}
}

// with is res with s in the place of whatever it says of that server.
func with(res mit.Resource, s cluster.Server) mit.Resource {
	i, known := slices.BinarySearchFunc(res.Servers, s.ServerID, func(s cluster.Server, id string) int {
		return cmp.Compare(s.ServerID, id)
	})
	if !known {
		res.Servers = slices.Insert(res.Servers, i, cluster.Server{})
	}
	s.Location = bytes.Clone(s.Location)
	res.Servers[i] = s
	return res
}

// foreignKeys are the first few keys that are none of ours.
func (v *view) foreignKeys(most int) []string {
	all := slices.Sorted(maps.Keys(v.foreign))
	return all[:min(most, len(all))]
}
