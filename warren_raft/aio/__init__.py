"""`store.aio`: writes, barriers, leadership and watches for programs with an asyncio loop. Nothing here blocks it."""
