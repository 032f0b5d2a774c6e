// Package observability tests the dashboard and the alert rules in this folder, with the metrics of
// clusterprom and with the rule engine of Prometheus.
package observability
