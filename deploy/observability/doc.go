// Package observability tests the dashboard and the alert rules in this folder, with the metrics of
// clusterprom and of the program mit, and with the rule engine of Prometheus.
package observability
