// Package h1 is a client for HTTP/1.1. In a fan-out it costs half as much as the client of
// net/http. The goroutine that calls [Transport.Do] or [Transport.RoundTrip] writes the request and
// reads the response. An idle connection has no goroutine, buffer or timer of its own.
//
// The standard library renders the requests and parses the responses, with one exception. The
// package has its own parser for the most common heads of responses, and uses [http.ReadResponse]
// for all others.
//
// # Do and RoundTrip
//
// RoundTrip implements [http.RoundTripper], for code that wraps one. Do is for many requests with
// the same header and body: a [Call] is checked and rendered once. Do reads the whole response, up
// to a limit. The header of the response is parsed only on demand. Both use the same code for
// connections, retries and cancellation.
//
// # Connections
//
// The idle connection that was used last is used first, so that unneeded connections expire. One
// timer closes expired connections, once a second and only while a connection is idle. Before an
// idle connection is used, the transport reads from it without blocking. If the peer has closed it,
// or has sent bytes that belong to no request, the transport uses another connection. On unix this
// check is one system call. On Windows, and for connections that are not sockets, it is a read with
// a deadline of a millisecond. With TLS, it also covers what has been read from the socket already.
//
// A request that finds no idle connection dials one, and waits only for that dial. In net/http,
// another goroutine dials, and the request uses a connection that becomes idle before the dial
// ends. This needs two more goroutines for each connection, and saves little: after a burst of
// requests, a part of one dial.
//
// # Writing
//
// A request of at most 16 KiB fits the send buffer of a socket. It is written before anything is
// read, because such a write does not wait for the peer. A goroutine writes all other requests:
// longer ones, those whose body is not in memory, and those on a connection that is not a socket.
// So a peer may respond before it has read the whole request, and the response is read.
//
// # Retries
//
// The conditions are the same as in net/http. A request is sent again if all of these hold:
//
//   - It was sent on a connection that had been used before.
//   - No part of a response arrived.
//   - Its body can be read again.
//   - No part of it was sent, or it may be sent twice: its method is GET, HEAD, OPTIONS or TRACE,
//     or it has an Idempotency-Key.
//
// # Differences from net/http
//
// The transport rejects more than net/http does:
//
//   - The head of a response is limited to 64 KiB, including the 1xx responses before it. There may
//     be at most 7 of these.
//   - A status of 101 is an error, because no request asks for another protocol.
//   - A status below 100 is an error. net/http returns the response and closes the connection.
//   - If bytes follow a response, the connection is closed before another request can use it.
//     net/http may use the connection again before it notices them.
//   - Two concurrent reads of one response body are an error.
//   - Host names must be ASCII. A transport serves one scheme: http, or https if it is
//     [Transport.Secure].
//
// Other differences follow from the design:
//
//   - If the connection fails while the request is being sent, a response that the peer sent before
//     is returned. In net/http, timing decides between the response and the write error.
//   - If a peer sends a response as soon as a connection opens, it counts as the response to the
//     first request. In net/http, timing decides between this response and an error.
//   - If a request is canceled while it dials, the dial ends. In net/http the dial continues.
//   - If there are [Transport.MaxIdle] idle connections, a further one is closed. In net/http, the
//     oldest idle connection is closed instead.
//   - [http.Request.Cancel] is ignored. It is deprecated in favor of the context.
//   - If the Read of a request body does not return after Close, the transport waits for 50 ms.
//     net/http waits without a limit.
//   - A Keep-Alive header of a response shortens or extends the idle timeout of its connection.
//   - Hooks of net/http/httptrace are called as in net/http, with two exceptions: Do does not call
//     WroteHeaderField and Wait100Continue.
//   - The transport does not wait for a 100 Continue. net/http behaves like that if
//     ExpectContinueTimeout is zero.
package h1
