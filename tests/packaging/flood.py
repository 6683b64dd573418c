"""Reviews that never come whole, from many addresses: `flood.py PORT ADDRESSES CONNECTIONS`, until it is ended.

Each address holds so many connections; each begins a small review, waits until it is given up, and begins the next.
It prints a line when all have begun, and at its end how many were begun.
"""

import asyncio
import signal
import ssl
import sys

PORT, ADDRESSES, CONNECTIONS = map(int, sys.argv[1:])
HEAD = b"POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n{" + b" " * 200
CONTEXT = ssl.create_default_context()
CONTEXT.check_hostname, CONTEXT.verify_mode = False, ssl.CERT_NONE
begun = 0


async def one(address, first):
    global begun
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT, ssl=CONTEXT, local_addr=(address, 0))
            writer.write(HEAD)
            begun += 1
            first.release()
            await reader.read(4096)
            writer.close()
        except OSError:
            first.release()
            await asyncio.sleep(0.05)


async def main():
    first = asyncio.Semaphore(0)
    addresses = [f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(ADDRESSES)]
    tasks = [asyncio.create_task(one(address, first)) for address in addresses for _ in range(CONNECTIONS)]
    for _ in tasks:
        await first.acquire()
    print("all have begun", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    for task in tasks:
        task.cancel()
    print(begun, flush=True)


asyncio.run(main())
