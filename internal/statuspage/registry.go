package statuspage

import "time"

// A Registry is the content of the status page of a registry.
type Registry struct {
	Now   time.Time `json:"now"`
	Lease Duration  `json:"leaseTime"`

	Store      string `json:"store"`
	StoreError string `json:"storeError,omitempty"`
	// ReadError is why the list of servers could not be read.
	ReadError string `json:"readError,omitempty"`
	InFlight  int    `json:"inFlight"` // requests

	Types  []RegistryType   `json:"types"`
	Left   []RegistryChange `json:"left"`     // the newest first
	Denied []RegistryChange `json:"rejected"` // registrations, the newest first

	// Confirm is the server that is to be deleted, after a confirmation; nil for none.
	Confirm *Confirmation `json:"-"`
	Notice  string        `json:"-"`
	Path    string        `json:"-"` // of the page
	Refresh Duration      `json:"-"`
}

// A RegistryType is the cluster of one type.
type RegistryType struct {
	Type       string           `json:"type"`
	ResourceID string           `json:"resourceId"`
	Limit      int              `json:"limit"`
	Full       bool             `json:"full"`
	Servers    []RegistryServer `json:"servers"`
}

// A RegistryServer is a registered server.
type RegistryServer struct {
	ID           string    `json:"id"`
	Address      string    `json:"address"`
	RegisteredAt time.Time `json:"registeredAt"`
	RenewedAt    time.Time `json:"renewedAt"`
	Renewed      Duration  `json:"renewed"`   // how long ago
	ExpiresIn    Duration  `json:"expiresIn"` // unless it renews
	UpdatedAt    string    `json:"updatedAt"` // the precondition of a delete
}

// A RegistryChange is a server that has left, or a registration that was rejected.
type RegistryChange struct {
	At      time.Time `json:"at"`
	Ago     Duration  `json:"ago"`
	Type    string    `json:"type"`
	ID      string    `json:"id"`
	Address string    `json:"address,omitempty"`
	Reason  string    `json:"reason"`
	Count   int       `json:"count"`
}

// A Confirmation states the effect of deleting a server.
type Confirmation struct {
	Type   string
	Server RegistryServer
	Effect string
}
