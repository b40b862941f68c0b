"""The service that real clients call through Outrider: one path per thing that clients and proxies disagree about.

Runs as a process of its own, so that clients which block can be driven from the tests. It says what it got, byte for
byte where that matters, and never more than it was asked. The first line it prints is the port it listens on.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from functools import cache

from aiohttp import WSCloseCode, WSMsgType, web

# What /download sends: every client makes the same bytes itself and compares.
SIZE = 2 * 1024 * 1024
EVENTS = 4
EVENT_PAUSE = 0.06
ETAG = '"v1"'
COOKIES = ("a=1; Path=/; HttpOnly", "b=two, with a comma; Path=/", "c=3; Expires=Wed, 21 Oct 2099 07:28:00 GMT")
TEXT = "A text that is worth compressing. " * 200


@cache
def pattern(size: int) -> bytes:
    """Bytes of which no two parts are alike, so that a swapped or doubled part changes the checksum."""
    return b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(size // 32 + 1))[:size]


async def echo(request: web.Request) -> web.Response:
    """What arrived: method, target and headers as they were written, and what the body amounts to."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "target": request.raw_path,
            "version": f"{request.version.major}.{request.version.minor}",
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.raw_headers],
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "text": body.decode("latin-1") if len(body) < 1000 else "",
        },
        headers={"X-MiXeD-Case": "kept"},
    )


async def download(request: web.Request) -> web.StreamResponse:
    """The pattern, framed as the query asks: by length, or chunked in pieces of uneven sizes."""
    body = pattern(SIZE)
    if "chunked" not in request.query:
        return web.Response(body=body)
    answer = web.StreamResponse()
    answer.enable_chunked_encoding()
    await answer.prepare(request)
    at, size = 0, 1
    while at < len(body):
        await answer.write(body[at : at + size])
        at += size
        size = size * 3 % 70_001 + 1
    await answer.write_eof()
    return answer


async def endless(request: web.Request) -> web.StreamResponse:
    """A body without end, for clients that hang up in the middle of it."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    piece = bytes(16384)
    try:
        while True:
            await answer.write(piece)
            await asyncio.sleep(0.001)
    except ConnectionError:
        return answer


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events, one every EVENT_PAUSE seconds."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await answer.prepare(request)
    for number in range(EVENTS):
        if number:
            await asyncio.sleep(EVENT_PAUSE)
        await answer.write(b"data: event %d\n\n" % number)
    return answer


async def status(request: web.Request) -> web.Response:
    """An answer with this status and a body, where a body is allowed."""
    code = int(request.match_info["code"])
    return web.Response(status=code, text=None if code in (204, 304) else f"status {code}")


async def tagged(request: web.Request) -> web.Response:
    """A resource with an entity tag, and 304 for whoever has it."""
    if request.headers.get("If-None-Match") == ETAG:
        return web.Response(status=304, headers={"ETag": ETAG})
    return web.Response(text="version one", headers={"ETag": ETAG})


async def compressed(request: web.Request) -> web.Response:
    """A gzip'd text, whether or not it was asked for."""
    body = gzip.compress(TEXT.encode(), mtime=0)
    return web.Response(body=body, headers={"Content-Encoding": "gzip", "Content-Type": "text/plain"})


async def redirect(request: web.Request) -> web.Response:
    """To /echo: as a path, as a URL of this server, or relative to the path asked for."""
    socket = request.transport.get_extra_info("sockname") if request.transport else ("", 0)
    location = {
        "path": "/echo?redirected=1",
        "url": f"http://127.0.0.1:{socket[1]}/echo?redirected=1",
        "relative": "../echo?redirected=1",
    }[request.match_info["how"]]
    return web.Response(status=int(request.query.get("status", "302")), headers={"Location": location})


async def cookies(request: web.Request) -> web.Response:
    """Several Set-Cookie fields; joining any two of them would change what they mean."""
    answer = web.Response(text="cookies")
    for cookie in COOKIES:
        answer.headers.add("Set-Cookie", cookie)
    return answer


async def hang(request: web.Request) -> web.Response:
    """No answer within the patience of anybody."""
    await asyncio.sleep(30)
    return web.Response(text="late")


async def refuse_upload(request: web.Request) -> web.Response:
    """Says no instead of 100 Continue."""
    raise web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2, text="too large for me")


async def socket_echo(request: web.Request) -> web.WebSocketResponse:
    """Echoes text and binary, and the close of the other side; `close CODE REASON` closes so, `count N` sends N
    messages, `headers` tells what the handshake said, `drop` breaks off."""
    answer = web.WebSocketResponse(max_msg_size=8 << 20, protocols=("chat.v2", "chat.v1"), autoclose=False)
    await answer.prepare(request)
    while not answer.closed:
        message = await answer.receive()
        if message.type is WSMsgType.CLOSE:
            await answer.close(code=message.data, message=(message.extra or "").encode())
        elif message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            break
        elif message.type is WSMsgType.BINARY:
            await answer.send_bytes(message.data)
        elif message.data.startswith("close "):
            _, code, reason = message.data.split(" ", 2)
            await answer.close(code=int(code), message=reason.encode())
        elif message.data.startswith("count "):
            for number in range(int(message.data.split()[1])):
                await answer.send_str(str(number))
        elif message.data == "headers":
            await answer.send_json([[name.decode(), value.decode("latin-1")] for name, value in request.raw_headers])
        elif message.data == "drop":
            assert request.transport is not None
            request.transport.abort()
        else:
            await answer.send_str(message.data)
    return answer


async def socket_greets(request: web.Request) -> web.WebSocketResponse:
    """Speaks first, in the same breath as the 101, and then says goodbye."""
    answer = web.WebSocketResponse()
    await answer.prepare(request)
    for number in range(3):
        await answer.send_str(f"hello {number}")
    await answer.close(code=WSCloseCode.GOING_AWAY, message=b"that was all")
    return answer


async def socket_refused(request: web.Request) -> web.Response:
    """No WebSocket for you."""
    return web.json_response({"reason": "members only"}, status=403)


def application() -> web.Application:
    """All paths."""
    app = web.Application(client_max_size=64 << 20)
    app.router.add_get("/download", download)
    app.router.add_get("/endless", endless)
    app.router.add_get("/events", events)
    app.router.add_route("*", "/status/{code}", status)
    app.router.add_get("/tagged", tagged)
    app.router.add_get("/gzip", compressed)
    app.router.add_route("*", "/redirect/{how}", redirect)
    app.router.add_get("/cookies", cookies)
    app.router.add_get("/hang", hang)
    app.router.add_post("/refuse-upload", refuse_upload, expect_handler=refuse_upload)
    app.router.add_get("/ws", socket_echo)
    app.router.add_get("/ws-short", socket_echo)
    app.router.add_get("/ws-greets", socket_greets)
    app.router.add_get("/ws-refused", socket_refused)
    app.router.add_route("*", "/{anything:.*}", echo)
    return app


async def main() -> None:
    """Serve until the process is told to stop."""
    runner = web.AppRunner(application(), access_log=None, auto_decompress=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
