"""Jina's rerank without a version in its path, as infinity and vLLM have it too.

Sources: infinity_emb 0.0.78; vllm-project/vllm, entrypoints/pooling. The answer is Cohere's, which
holds all that their clients read; errors have OpenAI's form.
"""

from e5core.serve.dialects import cohere, openai
from e5core.serve.routing import Dialect, Route

JINA = Dialect("jina", openai.error)
RERANK = Route(JINA, cohere.rerank)
