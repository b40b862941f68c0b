"""Request lines, fields, credentials, and what belongs to one connection only."""

from __future__ import annotations

from tests.wire.model import (
    OWN,
    Expectation,
    Observed,
    answer,
    both,
    clean,
    closes,
    either,
    refuse,
    say,
    served,
    status,
    waits,
)
from tests.wire.tables.build import (
    ABC,
    CODED,
    HOST,
    REFUSE_OR_CLEAN,
    SMUGGLED,
    but,
    coded,
    get,
    host_is_not,
    line,
    long,
    ok,
    old,
    post,
    sized,
    table,
)

LINE_ENDS = table(
    "line ends",
    "9112 2.2, 5.2; 9110 5.5",
    REFUSE_OR_CLEAN,
    {
        "obs-fold": get(b"X-A: 1\r\n 2"),
        "obs-fold with a tab": get(b"X-A: 1\r\n\t2"),
        "obs-fold of nothing": get(b"X-A: 1\r\n "),
        "obs-fold right behind the request line": line(b"GET /user/x HTTP/1.1", b" X-A: 1", b"Host: app.test"),
        "obs-fold that looks like a field": get(b"X-A: 1\r\n Host: evil.test"),
        "bare LF everywhere": b"GET /user/x HTTP/1.1\nHost: app.test\n\n",
        "bare LF behind the request line": b"GET /user/x HTTP/1.1\n" + HOST + b"\r\n",
        "bare LF between fields": get(b"X-A: 1\nX-B: 2"),
        "bare LF, then a length": but(
            post(b"X-A: 1\nContent-Length: %d" % len(SMUGGLED), body=SMUGGLED), either(refuse(), clean(SMUGGLED))
        ),
        "bare LF as the empty line": b"GET /user/x HTTP/1.1\r\n" + HOST + b"\n",
        "LF CR": b"GET /user/x HTTP/1.1\n\rHost: app.test\n\r\n\r",
        "bare CR as line end": but(
            b"GET /user/x HTTP/1.1\rHost: app.test\r\r", either(REFUSE_OR_CLEAN, waits()), patience=0.06
        ),
        "fold that looks like an empty name": get(b"X-A: 1", b" : 1"),
        "bare CR in a value": get(b"X-A: 1\rX-B: 2"),
        "bare CR before CR LF": get(b"X-A: 1\r"),
        "bare CR in a name": get(b"X-\rA: 1"),
        "NUL in a value": but(get(b"X-A: 1\x002"), either(refuse(), clean(b""))),
        "NUL in a name": but(get(b"X-\x00A: 1"), refuse()),
        "NUL behind a value": get(b"X-A: 1\x00"),
        "CTL in a value": get(b"X-A: 1\x01\x1f2"),
        "DEL in a value": get(b"X-A: 1\x7f2"),
        "BS in a value": get(b"X-A: evil\x08\x08"),
        "VT in a value": get(b"X-A: 1\x0b2"),
        "CTL in a name": but(get(b"X\x01A: 1"), refuse()),
        "obs-text in a value": but(get(b"X-A: caf\xe9"), REFUSE_OR_CLEAN),
        "obs-text in a name": but(get(b"X-\xe9: 1"), REFUSE_OR_CLEAN),
        "no colon": but(get(b"X-A"), REFUSE_OR_CLEAN),
        "empty name": but(get(b": 1"), refuse()),
        "empty name before the length": but(
            post(b":", b"Content-Length: %d" % len(SMUGGLED), body=SMUGGLED), refuse(), "CVE-2023-25725"
        ),
        "brace in a name": but(
            post(b"Content-Length{: 3", body=b"abc"), either(refuse(), clean(b"")), "CVE-2024-23829"
        ),
        "slash in a name": but(get(b"X/A: 1"), REFUSE_OR_CLEAN),
        "quotes in a name": but(get(b'"X-A": 1'), REFUSE_OR_CLEAN),
        "at sign in a name": but(get(b"X@A: 1"), REFUSE_OR_CLEAN),
        "space in a name": but(get(b"X A: 1"), REFUSE_OR_CLEAN),
        "empty value": but(get(b"X-A:"), clean(b"")),
        "colons in a value": but(get(b"X-A: a:b:c"), clean(b"", fields={"x-a": b"a:b:c"})),
        "tab inside a value": but(get(b"X-A: a\tb"), clean(b"")),
        "tabs around a value": but(get(b"X-A:\t a \t"), clean(b"", fields={"x-a": b"a"})),
    },
    after="refused",
)

COLON = table(
    "space before colon",
    "9112 5.1",
    refuse(400),
    {
        "plain field": get(b"X-A : 1"),
        "tab": get(b"X-A\t: 1"),
        "many": get(b"X-A    : 1"),
        "Host": line(b"GET /user/x HTTP/1.1", b"Host : app.test"),
        "Content-Length": post(b"Content-Length : %d" % len(SMUGGLED), body=SMUGGLED),
        "Content-Length, tab": post(b"Content-Length\t: %d" % len(SMUGGLED), body=SMUGGLED),
        "Transfer-Encoding, with a length": post(b"Content-Length: 13", b"Transfer-Encoding : chunked", body=ABC),
        "credential": get(b"x-api-key : evil"),
        "Connection": get(b"Connection : x-api-key"),
        "first field": line(b"GET /user/x HTTP/1.1", b"X-A : 1", b"Host: app.test"),
        "HTTP/1.0": but(old(b"X-A : 1"), refuse(400), minor=0),
    },
    after="refused",
)

HOST_FIELD = table(
    "Host",
    "9112 3.2",
    refuse(400),
    {
        "none": line(b"GET /user/x HTTP/1.1"),
        "none, with a body": line(b"POST /user/x HTTP/1.1", b"Content-Length: 3", body=b"abc"),
        "none, absolute form": line(b"GET http://user/user/x HTTP/1.1"),
        "two": get(b"Host: evil.test"),
        "two that are equal": get(b"Host: app.test"),
        "two, in different case": get(b"hOST: evil.test"),
        "two, far apart": get(*[b"X-%d: 1" % n for n in range(20)], b"Host: evil.test"),
        "two, absolute form": line(b"GET http://user/user/x HTTP/1.1", b"Host: user", b"Host: evil.test"),
        "path in it": line(b"GET /user/x HTTP/1.1", b"Host: app.test/evil"),
        "userinfo in it": line(b"GET /user/x HTTP/1.1", b"Host: evil@app.test"),
        "space in it": line(b"GET /user/x HTTP/1.1", b"Host: app.test evil.test"),
        "list": line(b"GET /user/x HTTP/1.1", b"Host: app.test, evil.test"),
        "query in it": line(b"GET /user/x HTTP/1.1", b"Host: app.test?x"),
        "fragment in it": line(b"GET /user/x HTTP/1.1", b"Host: app.test#x"),
        "backslash in it": line(b"GET /user/x HTTP/1.1", b"Host: app.test\\evil"),
        "angle brackets in it": line(b"GET /user/x HTTP/1.1", b"Host: <app.test>"),
        "unclosed bracket": line(b"GET /user/x HTTP/1.1", b"Host: [::1"),
        "letters in brackets": line(b"GET /user/x HTTP/1.1", b"Host: [evil]"),
        "port of letters": line(b"GET /user/x HTTP/1.1", b"Host: app.test:http"),
        "two ports": line(b"GET /user/x HTTP/1.1", b"Host: app.test:80:90"),
        "negative port": line(b"GET /user/x HTTP/1.1", b"Host: app.test:-80"),
        "tab in it": line(b"GET /user/x HTTP/1.1", b"Host: app.test\tevil"),
        "NUL in it": line(b"GET /user/x HTTP/1.1", b"Host: app.test\x00evil"),
        "raw bytes in it": line(b"GET /user/x HTTP/1.1", "Host: ä.test".encode()),
        "DEL in it": line(b"GET /user/x HTTP/1.1", b"Host: app.test\x7f"),
        "URL in it": line(b"GET /user/x HTTP/1.1", b"Host: http://app.test"),
        "folded": but(line(b"GET /user/x HTTP/1.1", b"Host:\r\n app.test"), either(refuse(), clean(b""))),
        "empty": but(line(b"GET /user/x HTTP/1.1", b"Host:"), either(refuse(400), clean(b""))),
        "port without digits": but(line(b"GET /user/x HTTP/1.1", b"Host: app.test:"), either(refuse(), clean(b""))),
        "IPv6": but(line(b"GET /user/x HTTP/1.1", b"Host: [::1]:80"), clean(b"")),
        "two in HTTP/1.0": but(old(b"Host: evil.test"), refuse(400), minor=0),
        "none in HTTP/1.0": but(line(b"GET /user/x HTTP/1.0"), either(refuse(400), clean(b"")), minor=0),
    },
    after="refused",
)


REQUEST_LINE = table(
    "request line",
    "9112 3; 9110 9.3.6",
    refuse(),
    {
        "HTTP/2.0": line(b"GET /user/x HTTP/2.0", b"Host: app.test"),
        "HTTP/3.0": line(b"GET /user/x HTTP/3.0", b"Host: app.test"),
        "HTTP/0.9": line(b"GET /user/x HTTP/0.9", b"Host: app.test"),
        "no version": line(b"GET /user/x", b"Host: app.test"),
        "no version, no fields": b"GET /user/x\r\n\r\n",
        "RTSP/1.0": line(b"GET /user/x RTSP/1.0", b"Host: app.test"),
        "RTSP method": line(b"SETUP /user/x RTSP/1.0", b"Host: app.test"),
        "ICE/1.0": line(b"SOURCE /user/x ICE/1.0", b"Host: app.test"),
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        "SSH banner": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "PROXY protocol": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + get(),
        "lower-case http": line(b"GET /user/x http/1.1", b"Host: app.test"),
        "HTTP/1.10": line(b"GET /user/x HTTP/1.10", b"Host: app.test"),
        "HTTP/01.1": line(b"GET /user/x HTTP/01.1", b"Host: app.test"),
        "HTTP/1.": line(b"GET /user/x HTTP/1.", b"Host: app.test"),
        "HTTP/1": line(b"GET /user/x HTTP/1", b"Host: app.test"),
        "HTTP/1,1": line(b"GET /user/x HTTP/1,1", b"Host: app.test"),
        "HTTP/ 1.1": line(b"GET /user/x HTTP/ 1.1", b"Host: app.test"),
        "HTTP/+1.1": line(b"GET /user/x HTTP/+1.1", b"Host: app.test"),
        "full-width version": line("GET /user/x HTTP/１.1".encode(), b"Host: app.test"),
        "word behind the version": line(b"GET /user/x HTTP/1.1 x", b"Host: app.test"),
        "two versions": line(b"GET /user/x HTTP/1.1 HTTP/1.1", b"Host: app.test"),
        "HTTP/1.2": but(line(b"GET /user/x HTTP/1.2", b"Host: app.test"), REFUSE_OR_CLEAN),
        "space behind the version": but(line(b"GET /user/x HTTP/1.1 ", b"Host: app.test"), REFUSE_OR_CLEAN),
        "two spaces": but(line(b"GET  /user/x  HTTP/1.1", b"Host: app.test"), REFUSE_OR_CLEAN),
        "tabs for spaces": but(line(b"GET\t/user/x\tHTTP/1.1", b"Host: app.test"), REFUSE_OR_CLEAN),
        "space in front": but(line(b" GET /user/x HTTP/1.1", b"Host: app.test"), REFUSE_OR_CLEAN),
        "CR LF in front": but(b"\r\n" + get(), REFUSE_OR_CLEAN, "9112 2.2"),
        "LF in front": but(b"\n" + get(), REFUSE_OR_CLEAN, "9112 2.2"),
        "VT for a space": line(b"GET\x0b/user/x HTTP/1.1", b"Host: app.test"),
        "lower-case method": but(line(b"get /user/x HTTP/1.1", b"Host: app.test"), REFUSE_OR_CLEAN, methods=("GET",)),
        "unknown method": but(
            line(b"FROBNICATE /user/x HTTP/1.1", b"Host: app.test"), REFUSE_OR_CLEAN, methods=("GET",)
        ),
        "separator in the method": line(b"GE(T /user/x HTTP/1.1", b"Host: app.test"),
        "NUL in the method": line(b"G\x00ET /user/x HTTP/1.1", b"Host: app.test"),
        "no method": line(b"/user/x HTTP/1.1", b"Host: app.test"),
        "space in the target": line(b"GET /user/a b HTTP/1.1", b"Host: app.test"),
        "version in the target": line(b"GET /user/smuggled HTTP/1.1 HTTP/1.1", b"Host: app.test"),
        "NUL in the target": line(b"GET /user/\x00x HTTP/1.1", b"Host: app.test"),
        "CTL in the target": line(b"GET /user/\x01x HTTP/1.1", b"Host: app.test"),
        "DEL in the target": line(b"GET /user/\x7fx HTTP/1.1", b"Host: app.test"),
        "bare CR in the target": line(b"GET /user/\rx HTTP/1.1", b"Host: app.test"),
        "bare LF in the target": line(b"GET /user/smuggled\nx HTTP/1.1", b"Host: app.test"),
        "fragment": but(line(b"GET /user/x#/../smuggled HTTP/1.1", b"Host: app.test"), REFUSE_OR_CLEAN),
        "raw UTF-8 in the target": but(
            line("GET /user/é HTTP/1.1".encode(), b"Host: app.test"), REFUSE_OR_CLEAN, paths=("/%C3%A9",)
        ),
        "encoded line end in the target": but(
            get(path=b"/user/a%0d%0aX-Evil:%201"), clean(b"", absent=("x-evil",)), paths=("/a%0D%0AX-Evil:%201",)
        ),
        "no path": line(b"GET user/x HTTP/1.1", b"Host: app.test"),
        "authority form for GET": line(b"GET app.test:80 HTTP/1.1", b"Host: app.test"),
        "asterisk for GET": line(b"GET * HTTP/1.1", b"Host: user"),
        "empty target": line(b"GET  HTTP/1.1", b"Host: app.test"),
        "CONNECT": line(b"CONNECT app.test:80 HTTP/1.1", b"Host: app.test:80"),
        "CONNECT with a path": line(b"CONNECT /user/x HTTP/1.1", b"Host: app.test"),
        "CONNECT with bytes behind": line(b"CONNECT user:80 HTTP/1.1", b"Host: user:80", body=SMUGGLED),
        "TRACE": line(b"TRACE /user/x HTTP/1.1", b"Host: app.test"),
        "https target": line(b"GET https://user/x HTTP/1.1", b"Host: user"),
        "ftp target": line(b"GET ftp://user/x HTTP/1.1", b"Host: user"),
        "target without authority": line(b"GET http:///user/x HTTP/1.1", b"Host: user"),
        "userinfo in the target": line(b"GET http://evil@user/x HTTP/1.1", b"Host: user"),
        "absolute form": but(
            line(b"GET http://user/user/x HTTP/1.1", b"Host: user"), REFUSE_OR_CLEAN, also=("/user/x",)
        ),
        "absolute form against Host": but(
            line(b"GET http://user/user/x HTTP/1.1", b"Host: evil.test"),
            both(REFUSE_OR_CLEAN, host_is_not(b"evil.test")),
            "9112 3.2.2",
            also=("/user/x",),
        ),
        "OPTIONS *": but(
            line(b"OPTIONS * HTTP/1.1", b"Host: user"), either(refuse(), clean(b""), status(200, 204)), paths=("*",)
        ),
    },
    after="refused",
)


CREDENTIALS = table(
    "credentials",
    "9110 7.6.1",
    REFUSE_OR_CLEAN,
    {
        "none sent": but(get(), clean(b"")),
        "spoofed": but(get(b"x-api-key: evil"), clean(b"")),
        "spoofed in upper case": but(get(b"X-API-KEY: evil"), clean(b"")),
        "spoofed in mixed case": but(get(b"X-Api-Key: evil"), clean(b"")),
        "spoofed twice": but(get(b"x-api-key: evil", b"X-Api-Key: evil"), clean(b"")),
        "spoofed empty": but(get(b"x-api-key:"), clean(b"")),
        "spoofed with underscores": get(b"x_api_key: evil"),
        "spoofed with one underscore": get(b"x-api_key: evil"),
        "spoofed with underscores in upper case": get(b"X_API_KEY: evil"),
        "spoofed in a fold": get(b"X-A: 1\r\n x-api-key: evil"),
        "spoofed behind a bare LF": get(b"X-A: 1\nx-api-key: evil"),
        "spoofed behind a bare CR": get(b"X-A: 1\rx-api-key: evil"),
        "spoofed with a NUL in the name": but(get(b"x-api-key\x00: evil"), refuse()),
        "spoofed with a space before the colon": but(get(b"x-api-key : evil"), refuse(400)),
        "spoofed with a tab before the colon": but(get(b"x-api-key\t: evil"), refuse(400)),
        "spoofed, body": but(sized(b"abc", b"x-api-key: evil"), clean(b"abc")),
        "spoofed, chunked": but(coded(ABC, b"x-api-key: evil"), clean(b"abc")),
        "spoofed, HEAD": but(get(b"x-api-key: evil", method=b"HEAD"), clean(b"")),
        "spoofed, HTTP/1.0": but(old(b"x-api-key: evil"), clean(b""), minor=0),
        "spoofed in both of two pipelined": but(
            get(b"x-api-key: evil") + get(b"X-Api-Key: evil", path=b"/user/y"), served(), paths=("/x", "/y")
        ),
        "nominated in Connection": but(get(b"Connection: x-api-key"), clean(b"")),
        "nominated in upper case": but(get(b"Connection: X-API-KEY"), clean(b"")),
        "nominated and spoofed": but(get(b"Connection: x-api-key", b"x-api-key: evil"), clean(b"")),
        "nominated with close": but(get(b"Connection: close, x-api-key"), clean(b"")),
        "nominated with keep-alive": but(get(b"Connection: keep-alive,x-api-key"), clean(b"")),
        "nominated twice": but(get(b"Connection: x-api-key, x-api-key"), clean(b"")),
        "nominated behind an empty Connection": but(
            get(b"Connection:", b"Connection: x-api-key"), clean(b""), "CVE-2021-33197"
        ),
        "nominated between commas": but(get(b"Connection: ,, x-api-key ,,"), clean(b"")),
        "nominated with underscores": get(b"Connection: x_api_key", b"x_api_key: evil"),
        "nominated, body": but(sized(b"abc", b"Connection: x-api-key"), clean(b"abc")),
        "nominated, HTTP/1.0": but(old(b"Connection: keep-alive, x-api-key"), clean(b""), minor=0),
        "nominated in Keep-Alive": but(get(b"Keep-Alive: x-api-key", b"Connection: keep-alive"), clean(b"")),
        "nominated in Proxy-Connection": but(get(b"Proxy-Connection: x-api-key"), clean(b"")),
        "nominated with all we may add": but(
            get(b"Connection: x-api-key, x-service-name, via, host, content-length"), REFUSE_OR_CLEAN
        ),
        "in quotes": but(get(b'Connection: "x-api-key"'), REFUSE_OR_CLEAN),
        "TRACE": but(get(b"Max-Forwards: 0", method=b"TRACE"), refuse()),
        "TRACE with Max-Forwards 1": but(get(b"Max-Forwards: 1", method=b"TRACE"), refuse()),
        "lower-case trace": but(line(b"trace /user/x HTTP/1.1", b"Host: app.test"), REFUSE_OR_CLEAN, methods=("GET",)),
        "on a retried request": but(
            get(b"x-api-key: evil", b"Connection: x-api-key"),
            served(),
            target=(say(then="reset"), OWN),
        ),
    },
    after="refused",
)


def _te_declared(it: Observed) -> str:
    for request in it.seen:
        if request.values("te") and b"te" not in request.tokens("connection"):
            return f"TE without Connection at the target: {request.values('te')}"
    return ""


def _nothing_left(name: str, *others: str) -> Expectation:
    return clean(None, absent=(name, *others))


HOP_BY_HOP = table(
    "hop-by-hop requests",
    "9110 7.6.1",
    clean(b"", absent=("x-hop",)),
    {
        "nominated": get(b"Connection: x-hop", b"X-Hop: 1"),
        "nominated in another case": get(b"Connection: X-HOP", b"x-hop: 1"),
        "nominated after the field": get(b"X-Hop: 1", b"Connection: x-hop"),
        "nominated in the second Connection": get(b"Connection: keep-alive", b"Connection: x-hop", b"X-Hop: 1"),
        "nominated in an empty list": get(b"Connection: , ,x-hop, ", b"X-Hop: 1"),
        "nominated with tabs": get(b"Connection: keep-alive,\tx-hop\t", b"X-Hop: 1"),
        "nominated, sent twice": get(b"Connection: x-hop", b"X-Hop: 1", b"X-Hop: 2"),
        "Keep-Alive": but(get(b"Keep-Alive: timeout=5", b"Connection: keep-alive"), _nothing_left("keep-alive")),
        "Proxy-Connection": but(get(b"Proxy-Connection: keep-alive"), _nothing_left("proxy-connection")),
        "TE": but(get(b"TE: trailers", b"Connection: TE"), both(clean(b""), _te_declared)),
        "TE, not nominated": but(get(b"TE: gzip"), both(clean(b""), _te_declared)),
        "Upgrade, not nominated": but(get(b"Upgrade: foo/1"), either(refuse(), _nothing_left("upgrade"))),
        "close": but(get(b"Connection: close"), both(clean(b""), closes)),
        "Host cannot be removed": but(get(b"Connection: host"), either(refuse(), clean(b""))),
        "Content-Length cannot be removed": but(sized(b"abc", b"Connection: content-length"), clean(b"abc")),
        "Transfer-Encoding cannot be removed": but(coded(ABC, b"Connection: transfer-encoding"), clean(b"abc")),
        "Content-Type stays": but(
            sized(b"abc", b"Content-Type: text/plain"), clean(b"abc", fields={"content-type": b"text/plain"})
        ),
        "Authorization stays": but(get(b"Authorization: Bearer a"), clean(b"", fields={"authorization": b"Bearer a"})),
        "Cookie stays": but(get(b"Cookie: a=b; c=d"), clean(b"", fields={"cookie": b"a=b; c=d"})),
    },
)

HOP_BY_HOP += table(
    "hop-by-hop answers",
    "9110 7.6.1",
    answer(200, b"ok", absent=("x-hop",)),
    {
        name: but(get(), answer(200, b"ok", absent=absent), target=(say(data),))
        for name, data, absent in (
            ("nominated", long(b"ok", b"Connection: x-hop", b"X-Hop: 1"), ("x-hop",)),
            ("nominated after the field", long(b"ok", b"X-Hop: 1", b"Connection: x-hop"), ("x-hop",)),
            ("nominated in another case", long(b"ok", b"Connection: X-HOP", b"x-hop: 1"), ("x-hop",)),
            ("nominated in a list", long(b"ok", b"Connection: ,, close, x-hop", b"X-Hop: 1"), ("x-hop",)),
            ("nominated twice", long(b"ok", b"Connection: a", b"Connection: x-hop", b"X-Hop: 1"), ("x-hop",)),
            ("Keep-Alive", long(b"ok", b"Keep-Alive: timeout=9, max=7"), ()),
            ("Proxy-Connection", long(b"ok", b"Proxy-Connection: keep-alive"), ("proxy-connection",)),
            ("Upgrade", long(b"ok", b"Connection: Upgrade", b"Upgrade: h2c"), ("upgrade",)),
            ("Content-Length cannot be removed", long(b"ok", b"Connection: content-length"), ()),
            (
                "Transfer-Encoding cannot be removed",
                ok(CODED, b"Connection: transfer-encoding", body=b"2\r\nok\r\n0\r\n\r\n"),
                (),
            ),
        )
    },
)
