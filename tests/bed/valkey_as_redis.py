"""Let `import redis` be valkey-py, whose classes are still known by redis-py's names: the tests run with it as it is."""

import sys
from importlib import import_module

import_module("valkey.exceptions").__dict__["RedisError"] = import_module("valkey.exceptions").__dict__["ValkeyError"]
for _name in ("", ".asyncio", ".asyncio.retry", ".backoff", ".exceptions"):
    sys.modules[f"redis{_name}"] = import_module(f"valkey{_name}")
