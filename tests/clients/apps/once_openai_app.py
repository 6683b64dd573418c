"""Many POSTs by the official openai package with its retries on. Arguments: `base_url` or `-`, a prefix, a count, threads.

Every fourth is a stream. Prints one line a POST: its name, and `done` or what was raised.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai

base, prefix, count, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
options = {"api_key": os.environ["APP_KEY"], "max_retries": 3}
if base != "-":
    options["base_url"] = base
client = openai.OpenAI(**options)


def ask(name: str, stream: bool) -> str:
    question = {"model": "gpt-test", "messages": [{"role": "user", "content": name}]}
    if not stream:
        return client.chat.completions.create(**question).choices[0].message.content
    parts = client.chat.completions.create(**question, stream=True)
    return "".join(part.choices[0].delta.content for part in parts)


def post(number: int) -> str:
    name = f"{prefix}-{number}"
    try:
        got = ask(name, stream=number % 4 == 3)
    except openai.APIStatusError as error:
        return f"{name} {type(error).__name__} {error.status_code}"
    # A stream that breaks is not wrapped by the package, nor tried again.
    except (openai.OpenAIError, httpx2.HTTPError) as error:
        return f"{name} {type(error).__name__}"
    return f"{name} done" if got == name else f"{name} another's answer: {got}"


with ThreadPoolExecutor(threads) as pool:
    for line in pool.map(post, range(count)):
        print(line)
