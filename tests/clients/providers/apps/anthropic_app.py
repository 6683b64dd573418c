"""anthropic: an answer, and one as a stream, whose second part comes only after another call, which has two pages."""

from anthropic import Anthropic
from how import KEY, LINES, LOCAL

exec(LINES)
QUESTION = {"model": "claude-test", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
print("plain", client.messages.create(**QUESTION).content[0].text)
words, models = [], []
for event in client.messages.create(**QUESTION, stream=True):
    if event.type == "message_start":
        models = [one.id for one in client.models.list(limit=1)]
    if event.type == "content_block_delta":
        words.append(event.delta.text)
print("models", models, "streamed", words)
