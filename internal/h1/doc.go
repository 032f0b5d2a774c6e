// Package h1 is a client for plain HTTP/1.1.
package h1
