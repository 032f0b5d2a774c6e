module github.com/mimiktech/cluster/sumologic

go 1.26.0

require (
	github.com/theory/jsonpath v0.12.3
	go.uber.org/zap v1.28.0
)

require go.uber.org/multierr v1.10.0 // indirect
