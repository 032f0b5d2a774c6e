// Package h1 is a client for plain HTTP/1.1 that costs a fan-out half of what net/http's costs. A
// request is written, and its response read, by the goroutine that calls [Transport.Do] or
// [Transport.RoundTrip]. An idle connection has no goroutine, buffer or timer of its own. The
// parsers and the writer of requests are those of the standard library; only the head of the most
// common responses is parsed here, by rules that accept less, and what they do not accept goes to
// [http.ReadResponse].
//
// # Two ways in
//
// RoundTrip is for everything that wraps an [http.RoundTripper]. Do is for many requests that have
// their header and body in common: a [Call] is checked and rendered once. Do reads the whole
// response, under a limit, and parses its header only when it is asked for. Both take the same path
// through connections, retries and cancellation.
//
// # Connections
//
// The connection that was used last is used first, so that those not needed expire. One goroutine
// closes what has expired, once a second, and only while a connection is idle. Before an idle
// connection is used it is read without waiting: if the peer has closed it, or has sent something
// that no request asked for, another is used. On unix that is one system call. Elsewhere, as on
// Windows, and for connections that are not sockets, it is a read with a deadline of a millisecond.
//
// A request that finds no idle connection dials, and waits for that alone. net/http dials in
// another goroutine, and takes a connection that becomes idle before. For that it would take two
// goroutines, and what it saves is part of one dial after a burst.
//
// # Writing
//
// A request of at most 16 KiB fits the send buffer of a socket. It is written before anything is
// read, since that cannot wait for the peer. A longer one, one whose body is not in memory, and one
// to a connection that is not a socket has a goroutine for writing alone, so that a response is
// read that the peer sends before it has read the request.
//
// # Retries
//
// They are those of net/http. A request is sent again if it was sent on a connection used before,
// nothing of a response arrived, its body can be had again, and either none of it was sent or it
// may be sent twice: its method is GET, HEAD, OPTIONS or TRACE, or it has an Idempotency-Key.
//
// # Differences from net/http
//
// Stricter, because a peer has no good reason for these:
//
//   - A head may have 64 KiB together with the 1xx responses before it, of which there may be 7.
//   - 101 is an error. Nothing here asks for another protocol.
//   - A status below 100 is an error. net/http returns it, and closes the connection.
//   - Bytes after a response close the connection before another request can use it. net/http has
//     a moment in which it does not know of them yet.
//   - Two concurrent reads of one response body are an error.
//   - Only the scheme http is spoken, and names of hosts must be ASCII.
//
// Different, because of how the package works:
//
//   - A response sent before the connection failed is returned even if the request could not be
//     sent to its end. net/http returns the response or the error of writing, whichever it sees
//     first.
//   - A peer that sends a response when a connection opens has it taken for that to the first
//     request. net/http does so or fails, for the same reason.
//   - When a request is canceled while it dials, the dial ends. That of net/http goes on.
//   - Connections beyond [Transport.MaxIdle] are closed instead of the oldest idle one.
//   - [http.Request.Cancel] is not looked at. It is deprecated in favor of the context.
//   - A body whose Read does not return when it is closed is waited for during 50 ms, not forever.
//   - A Keep-Alive header of a response shortens or extends the time that its connection is idle.
//   - Hooks of net/http/httptrace are called as there, except WroteHeaderField and Wait100Continue
//     in Do. An expected 100 Continue is not waited for, as with a zero ExpectContinueTimeout.
package h1
