"""openai: an answer, and one as a stream, whose second part comes only after another call."""

from how import KEY, LINES, LOCAL
from openai import OpenAI

exec(LINES)
QUESTION = {"model": "gpt-test", "messages": [{"role": "user", "content": "hi"}]}
print("plain", client.chat.completions.create(**QUESTION).choices[0].message.content)
words = []
for part in client.chat.completions.create(**QUESTION, stream=True):
    if not words:
        client.models.list()
    words.append(part.choices[0].delta.content)
print("streamed", words)
