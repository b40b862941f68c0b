"""Valid messages to start from, and pieces that have broken proxies before."""

from __future__ import annotations

from fuzz.strict import chunked

_H = b"Host: app.test\r\n"
_BODY = b"GET /user/inner HTTP/1.1\r\nHost: evil\r\n\r\n"  # what must never be read as a request
_LONG = bytes(range(256)) * 20

REQUESTS: tuple[bytes, ...] = (
    b"GET /user/1 HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET /user/1?q=a%20b&c=%00 HTTP/1.1\r\n" + _H + b"Accept: */*\r\nX-A: 1\r\nx-b: two words\r\n\r\n",
    b"HEAD /user/h HTTP/1.1\r\n" + _H + b"\r\n",
    b"DELETE /user/d HTTP/1.1\r\n" + _H + b"Content-Length: 0\r\n\r\n",
    b"POST /user/p HTTP/1.1\r\n" + _H + b"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /user/p HTTP/1.1\r\n" + _H + b"Content-Length: %d\r\n\r\n" % len(_BODY) + _BODY,
    b"GET /user/body HTTP/1.1\r\n" + _H + b"Content-Length: %d\r\n\r\n" % len(_BODY) + _BODY,
    b"POST /user/c HTTP/1.1\r\n" + _H + b"Transfer-Encoding: chunked\r\n\r\n" + chunked([b"one", _BODY, b"x" * 300]),
    b"PUT /user/ext HTTP/1.1\r\n" + _H + b"Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
    b'3;a=b;c="d"\r\nabc\r\n0;e\r\nX-T: 1\r\nX-Api-Key: evil\r\n\r\n',
    b"PUT /user/long HTTP/1.1\r\n" + _H + b"Content-Length: %d\r\n\r\n" % len(_LONG) + _LONG,
    b"POST /user/long HTTP/1.1\r\n" + _H + b"Transfer-Encoding: chunked\r\n\r\n" + chunked([_LONG, _LONG]),
    b"POST /user/e HTTP/1.1\r\n" + _H + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /user/e HTTP/1.1\r\n" + _H + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunked([b"hi"]),
    b"GET /user/old HTTP/1.0\r\n\r\n",
    b"GET /user/old HTTP/1.0\r\n" + _H + b"Connection: keep-alive\r\n\r\nGET /user/2 HTTP/1.0\r\n" + _H + b"\r\n",
    b"POST /user/old HTTP/1.0\r\n" + _H + b"Connection: Keep-Alive\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /user/k HTTP/1.1\r\n" + _H + b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n",
    b"GET /user/close HTTP/1.1\r\n" + _H + b"Connection: close\r\n\r\n",
    b"GET /user/a HTTP/1.1\r\n" + _H + b"\r\nPOST /user/b HTTP/1.1\r\n" + _H + b"Content-Length: 2\r\n\r\nab"
    b"GET /user/c HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET /user/1 HTTP/1.1\r\n" + _H + b"\r\n" * 1 + b"HEAD /user/2 HTTP/1.1\r\n" + _H + b"\r\nGET /user/3 HTTP/1.1\r\n"
    + _H + b"Connection: close\r\n\r\n",
    b"GET /user/ws HTTP/1.1\r\n" + _H + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"GET /user/ws HTTP/1.1\r\n" + _H + b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x85frames",
    b"POST /user/h2c HTTP/1.1\r\n" + _H + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQ\r\nContent-Length: 3\r\n\r\nabcGET /user/next HTTP/1.1\r\n" + _H + b"\r\n",
    b"GET /user/n HTTP/1.1\r\n" + _H + b"Connection: x-api-key, x-a, te\r\nX-A: 1\r\nTE: trailers\r\n"
    b"X-Api-Key: evil\r\nx_api_key: evil\r\n\r\n",
    b"GET /user/t HTTP/1.1\r\n" + _H + b"Connection: TE\r\nTE: trailers\r\n\r\n",
    b"GET http://user/abs?x HTTP/1.1\r\nHost: user\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: user\r\n\r\n",
    b"GET /named HTTP/1.1\r\nHost: user:4100\r\nx-correlation-id: c-1\r\nx-outrider-timeout: 300ms\r\n"
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\n\r\n",
    b"PATCH /user/i HTTP/1.1\r\n" + _H + b"Idempotency-Key: k\r\nContent-Length: 1\r\n\r\n1",
    b"GET /user/many HTTP/1.1\r\n" + _H + b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(30)) + b"\r\n",
    b"GET /nobody HTTP/1.1\r\n" + _H + b"\r\nGET /user/after HTTP/1.1\r\n" + _H + b"\r\n",
)  # fmt: skip

_OK = b"HTTP/1.1 200 OK\r\n"
_PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"  # what must never be read as an answer

RESPONSES: tuple[bytes, ...] = (
    _OK + b"Content-Length: 5\r\n\r\nhello",
    _OK + b"Content-Length: 0\r\n\r\n",
    _OK + b"Content-Type: text/plain\r\nX-A: 1\r\nX-a: 2\r\nContent-Length: %d\r\n\r\n" % len(_PAGE) + _PAGE,
    _OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked([b"one", _PAGE, b"y" * 500]),
    _OK + b'Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n3;a="b"\r\nabc\r\n0\r\nX-T: 1\r\n\r\n',
    _OK + b"Content-Length: %d\r\n\r\n" % len(_LONG) + _LONG,
    _OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked([_LONG, b"z", _LONG]),
    _OK + b"Connection: close\r\n\r\nuntil the end",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nold",
    b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
    b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\nContent-Length: 10\r\n\r\n',
    b"HTTP/1.1 100 Continue\r\n\r\n" + _OK + b"Content-Length: 2\r\n\r\nok",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 103 Early Hints\r\nConnection: x-a\r\nX-A: 1\r\n\r\n"
    + _OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
    _OK + b"Connection: close, x-secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 301 Moved\r\nLocation: /else?x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\nbusy",
    b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 299 Some\ttext \xe9\r\nContent-Length: 2\r\n\r\nok",
    _OK + b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(30)) + b"Content-Length: 2\r\n\r\nok",
)  # fmt: skip

# Lines that proxies have understood differently from one another.
LINES: tuple[bytes, ...] = (
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: \"chunked\"",
    b"Transfer-Encoding:",
    b"Transfer_Encoding: chunked",
    b"TRANSFER-ENCODING: CHUNKED",
    b" Transfer-Encoding: chunked",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: +5",
    b"Content-Length: -1",
    b"Content-Length: 5, 5",
    b"Content-Length: 0x5",
    b"Content-Length: 5_0",
    b"Content-Length: 005",
    b"Content-Length: 5\t",
    b"Content-Length:",
    b"Content-Length: 18446744073709551617",
    b"Content_Length: 5",
    b"Host: other",
    b"Host: a b",
    b"Host:",
    b"Host: user@evil",
    b"Host: app.test:99999",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: upgrade",
    b"Connection: host, content-length, transfer-encoding, x-api-key, x-service-name, traceparent",
    b"Connection: , ,x-a,,",
    b"Connection:",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: 200-ok",
    b"TE: trailers",
    b"Keep-Alive: timeout=1",
    b"Proxy-Authorization: Basic eA==",
    b"Proxy-Connection: keep-alive",
    b"X-Api-Key: evil",
    b"x_api_key: evil",
    b"X-API-KEY : evil",
    b"X-Service-Name: evil",
    b"X-Correlation-Id: \xff\xfe",
    b"X-Outrider-Service: user",
    b"X-Outrider-Service: nobody",
    b"X-Outrider-Timeout: 1e999",
    b"X-Outrider-Timeout: 0",
    b"X-Outrider-Retry: off",
    b"X-Request-Timeout-Ms: 99999",
    b"Via: 1.1 outrider",
    b"traceparent: 01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
    b"X-Fold: a\r\n b",
    b"X-Nul: \x00",
    b"X-Del: \x7f",
    b"X-Cr: a\rb",
    b"X-Lf: a\nX-B: c",
    b": no name",
    b"no colon",
    b"X-Long: " + b"v" * 5000,
    b"X-Empty:",
    b"Location: /x",
    b"Location: //evil",
    b"Retry-After: 999999999999999999999",
    b"Keep-Alive: timeout=99999999999999999999",
)  # fmt: skip

# Bytes and short runs that mean something to a parser.
BYTES: tuple[bytes, ...] = (
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\r\n", b"\0", b"\t", b" ", b"  ", b"\x0b", b"\x0c", b"\x7f",
    b"\x80", b"\xff", b"\xa0", b":", b";", b",", b"/", b"?", b"#", b"%", b"*", b"@", b"0", b"0\r\n\r\n", b"_", b"-",
    b"+", b"\"", b"\\", b"\x01", b"\x1b[0m", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2",
    b"RTSP/1.0", b"ICE/1.0",
)  # fmt: skip

NUMBERS: tuple[bytes, ...] = (
    b"0", b"1", b"2", b"3", b"9", b"00", b"-1", b"+1", b"0x10", b"1e3", b"4294967295", b"4294967296",
    b"9223372036854775808", b"18446744073709551616", b"99999999999999999999999", b"ffffffffffffffff",
    b"10000000000000000", b"65537", b"1_0", b"", b"100", b"101", b"204", b"304", b"999", b"1000", b"099",
)  # fmt: skip

METHODS: tuple[bytes, ...] = (
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT", b"PRI", b"SOURCE",
    b"DESCRIBE", b"get", b"G\0T", b"PURGE", b"M-SEARCH", b"FROB", b"",
)  # fmt: skip
