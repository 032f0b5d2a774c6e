// Package routers has no code of its own. Its tests run nodes behind the routers that README.md
// lists, and requests to peers through the transport of OpenTelemetry.
package routers
