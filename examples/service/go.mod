module github.com/mimiktech/cluster/examples/service

go 1.26.0

replace (
	github.com/mimiktech/cluster => ../../
	github.com/mimiktech/cluster/sumologic => ../../sumologic
)

require (
	github.com/google/go-cmp v0.7.0
	github.com/mimiktech/cluster v0.0.0
	github.com/mimiktech/cluster/sumologic v0.0.0
	go.uber.org/zap v1.28.0
)

require (
	github.com/cenkalti/backoff/v4 v4.3.0 // indirect
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/theory/jsonpath v0.12.3 // indirect
	go.uber.org/multierr v1.10.0 // indirect
	golang.org/x/oauth2 v0.37.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
)
