module github.com/mimiktech/cluster/routers/chi508

go 1.26.0

replace github.com/mimiktech/cluster => ../../

replace github.com/mimiktech/cluster/routers => ../

require (
	github.com/go-chi/chi/v5 v5.5.0
	github.com/mimiktech/cluster v0.0.0
	github.com/mimiktech/cluster/routers v0.0.0
)

require (
	github.com/cenkalti/backoff/v4 v4.3.0 // indirect
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	github.com/google/uuid v1.6.0 // indirect
	go.uber.org/multierr v1.10.0 // indirect
	go.uber.org/zap v1.28.0 // indirect
	golang.org/x/oauth2 v0.37.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
)

// The module routers requires a newer one.
replace github.com/go-chi/chi/v5 => github.com/go-chi/chi/v5 v5.0.8
