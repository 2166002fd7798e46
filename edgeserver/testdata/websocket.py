"""A WebSocket server and client.

websocket.py serve          an echo server; prints its port, ends with its input
websocket.py talk PORT CA   talks to wss://a.test at that port of this machine
"""
import asyncio
import ssl
import sys

import websockets


async def echo(ws, path):
    await ws.send(path + " " + ws.request_headers["X-Forwarded-Proto"])
    async for message in ws:
        await ws.send(message)
        if message == "bye":
            await ws.close(4001, "as agreed")
            return


async def serve():
    async with websockets.serve(echo, "127.0.0.1", 0, max_size=1 << 22, ping_interval=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def talk(port, ca):
    context = ssl.create_default_context(cafile=ca)
    async with websockets.connect("wss://a.test/chat?room=1", host="127.0.0.1", port=int(port),
                                  ssl=context, server_hostname="a.test", max_size=1 << 22,
                                  open_timeout=60, ping_interval=None, close_timeout=60) as ws:
        assert await ws.recv() == "/chat?room=1 https"
        for message in ["hello", "\u00e4" * 100_000, bytes(range(256)) * 8192, ""]:
            await ws.send(message)
            assert await ws.recv() == message
        await (await ws.ping())
        await ws.send("bye")
        assert await ws.recv() == "bye"
        await ws.wait_closed()
        print(ws.close_code, ws.close_reason)


if sys.argv[1] == "serve":
    asyncio.run(serve())
else:
    asyncio.run(talk(*sys.argv[2:]))
