"""llama.cpp's server, one process for all jobs; its times of one stream are its own.

The server reports the time that it took for a prompt and for the tokens after the first, without
HTTP; a batch is 32 connections at once, timed from outside. ``llama-bench`` has no batches of
unequal prompts, and loads the model for every call.
"""

import atexit
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from protocol import Task, Times, serve

TIMEOUT_S = 900.0


class LlamaServer:
    """A server with a slot for each sequence, each with room for the longest."""

    def __init__(self, task: Task) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        num_tokens = task.max_model_len * task.max_num_seqs
        command = [task.program, "-m", task.checkpoint, "--host", "127.0.0.1", "--port", str(port)]
        command += ["-t", str(task.num_threads), "-tb", str(task.num_threads), "--no-webui"]
        command += ["-np", str(task.max_num_seqs), "-c", str(num_tokens), "--no-kv-unified"]
        # A mapped file's pages could be dropped while it is not its turn.
        command += ["--load-mode", "none"]
        self._url = f"http://127.0.0.1:{port}"
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=2)
        atexit.register(self._server.terminate)
        self._wait_until_ready()
        self.facts: dict[str, object] = {"version": self._version()}

    def stream(self, prompt: Sequence[int], num_tokens: int) -> Times:
        timings = self._complete(prompt, num_tokens)["timings"]
        assert timings["prompt_n"] == len(prompt)
        first_s = timings["prompt_ms"] / 1e3
        return Times(first_s, first_s + timings["predicted_ms"] / 1e3)

    def batch(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        start_s = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(lambda prompt: self._complete(prompt, num_tokens), prompts))
        return time.perf_counter() - start_s

    def _complete(self, prompt: Sequence[int], num_tokens: int) -> Any:
        body = {
            "prompt": list(prompt),
            "n_predict": num_tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0.0,
            "samplers": ["top_k"],
            "top_k": 1,
        }
        answer = self._get("/completion", json.dumps(body).encode())
        assert answer["tokens_predicted"] == num_tokens
        return answer

    def _get(self, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, body, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return json.load(response)

    def _wait_until_ready(self) -> None:
        while self._server.poll() is None:
            try:
                self._get("/health")
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise SystemExit(f"llama-server ended with {self._server.returncode}")

    def _version(self) -> str:
        return str(self._get("/props").get("build_info", ""))


if __name__ == "__main__":
    serve(LlamaServer)
