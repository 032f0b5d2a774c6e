package main

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/mimiktech/cluster"
)

type user struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// users is the processor of the service. It knows nothing of HTTP, except for the statuses of its
// errors.
type users struct {
	mu   sync.Mutex // guards the field below
	byID map[string]user
}

// openUsers stands for the work before a service starts, such as opening a database. Requests that
// it makes with ctx carry the correlation id of the startup.
func openUsers(ctx context.Context) (*users, error) {
	return &users{byID: map[string]user{}}, ctx.Err()
}

func (u *users) get(_ context.Context, id string) (user, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	found, ok := u.byID[id]
	if !ok {
		return user{}, &cluster.StatusError{
			Code:    http.StatusNotFound,
			Message: "no such user",
			Info:    json.RawMessage(`{"id":` + quote(id) + `}`),
		}
	}
	return found, nil
}

func (u *users) create(_ context.Context, created user) (user, error) {
	if created.Name == "" {
		return user{}, parameterError("a user needs a name", "name")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	created.ID = uuid.NewString()
	u.byID[created.ID] = created
	return created, nil
}

func (u *users) all() []user {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.SortedFunc(maps.Values(u.byID), func(a, b user) int { return cmp.Compare(a.ID, b.ID) })
}

// parameterError returns the error of a malformed request.
func parameterError(message, field string) error {
	return &cluster.StatusError{
		Code:    http.StatusBadRequest,
		Message: message,
		Info:    json.RawMessage(`{"field":` + quote(field) + `}`),
	}
}

// quote returns text as JSON.
func quote(text string) string {
	b, _ := json.Marshal(text) // a string
	return string(b)
}
