"""The `openai` package, unchanged, against a base URL: models, a whole answer, a streamed one, and errors.

Usage: openai_client.py BASE_URL MODEL
"""

import sys

import openai

base, model = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=base, api_key="any", timeout=60, max_retries=0)

names = [m.id for m in client.models.list()]
assert model in names, f"{model} not in {names}"

messages = [{"role": "user", "content": "What is a load line?"}]
whole = client.chat.completions.create(model=model, messages=messages, max_tokens=16)
assert whole.choices[0].message.content, whole
assert whole.model == model, whole.model
assert 0 < whole.usage.completion_tokens <= 16, whole.usage
assert whole.usage.prompt_tokens > 0, whole.usage

pieces = 0
usage = None
stream = client.chat.completions.create(
    model=model, messages=messages, max_tokens=16, stream=True, stream_options={"include_usage": True}
)
for chunk in stream:
    if chunk.usage:
        usage = chunk.usage
    if chunk.choices and chunk.choices[0].delta.content:
        pieces += 1
assert pieces > 1, pieces
assert usage is not None and usage.completion_tokens >= pieces, usage

plain = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8)
assert plain.choices[0].text, plain

try:
    client.chat.completions.create(model="no-such-model", messages=messages)
    raise AssertionError("an unknown model was accepted")
except openai.NotFoundError as error:
    assert "no-such-model" in str(error), error
    assert model in str(error), error

try:
    client.chat.completions.create(model=model, messages="not a list")
    raise AssertionError("messages that are no list were accepted")
except openai.BadRequestError:
    pass

print(f"openai {openai.__version__}: {len(names)} models, whole and streamed answers ({pieces} pieces), typed errors")
