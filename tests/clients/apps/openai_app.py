"""The official openai package. Argument: `base_url`, or `-`. Plain, streamed and asynchronous."""

import asyncio
import os
import sys

import openai

options = {"api_key": os.environ["APP_KEY"]}
if sys.argv[1] != "-":
    options["base_url"] = sys.argv[1]
QUESTION = {"model": "gpt-test", "messages": [{"role": "user", "content": "hi"}]}

client = openai.OpenAI(**options)
print("plain", client.chat.completions.create(**QUESTION).choices[0].message.content)
print("embedding", client.embeddings.create(model="embed-test", input="hi", encoding_format="float").data[0].embedding)

words = []
for part in client.chat.completions.create(**QUESTION, stream=True):
    if not words:
        # The origin sends the second part only after this call.
        client.models.list()
    words.append(part.choices[0].delta.content)
print("streamed", words)


async def ask():
    async with openai.AsyncOpenAI(**options) as client:
        return (await client.chat.completions.create(**QUESTION)).choices[0].message.content


print("async", asyncio.run(ask()))
