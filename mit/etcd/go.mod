module github.com/mimiktech/cluster/mit/etcd

go 1.26.0

replace github.com/mimiktech/cluster => ../..

require (
	github.com/mimiktech/cluster v0.0.0
	go.etcd.io/etcd/client/v3 v3.7.3
	go.etcd.io/etcd/server/v3 v3.7.3
)
