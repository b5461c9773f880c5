"""A small server of OpenAI's completions over transformers, in the dialects of vLLM and SGLang; for tests, on loopback.

    python tests/loopback_server.py MODEL_FOLDER [--dialect sglang] [--logprobs-mode raw_logprobs]

It samples with transformers' own `generate`, prints its address, and serves until its input closes. POST /break
{"status": 503, "times": 2} makes it refuse the next completions; status 0 drops their connections.
"""

import argparse
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
import transformers

torch.set_num_threads(1)


class Engine:
    """The model, and the failures that it still has to answer with."""

    def __init__(self, folder: str, options: argparse.Namespace):
        self.options, self.lock, self.broken = options, threading.Lock(), []
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.load(folder)

    def load(self, folder: str) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def complete(self, body: dict) -> dict:
        prompt, greedy = torch.tensor([body["prompt"]]), body["temperature"] == 0
        torch.manual_seed(body.get("seed", 0))
        drawn = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if not greedy:
            drawn = {"do_sample": True, "temperature": body["temperature"], "top_p": body["top_p"]}
            drawn["top_k"] = max(0, body["top_k"])
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=body["max_tokens"],
            eos_token_id=body.get("stop_token_ids") or None,
            pad_token_id=0,
            stop_strings=body.get("stop") or None,
            tokenizer=self.tokenizer,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **drawn,
        )
        tokens = out.sequences[0, prompt.shape[1] :].tolist()
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        ended = tokens[-1] in body.get("stop_token_ids", ()) or any(s in text for s in body.get("stop", ()))
        steps = out.scores if self.options.logprobs_mode == "processed_logprobs" and not greedy else out.logits
        logp = [torch.log_softmax(z[0], dim=-1) for z in steps]
        top = [dict(zip(*(x.tolist() for x in reversed(z.topk(max(1, body["logprobs"])))))) for z in logp]
        choice = {"index": 0, "text": text, "finish_reason": "stop" if ended else "length"}
        choice["logprobs"] = {
            "tokens": [self.tokenizer.decode([t]) for t in tokens],
            "token_logprobs": [z[t].item() for z, t in zip(logp, tokens, strict=True)],
            "top_logprobs": [{str(t): nats for t, nats in one.items()} for one in top],
        }
        if body.get("return_token_ids") and self.options.dialect != "openai":
            choice["token_ids"] = tokens
        return {"object": "text_completion", "model": body["model"], "choices": [choice]}

    def answer(self, route: str, body: dict) -> tuple[int, dict]:
        """The status and the JSON of a POST."""
        if route == "/break":
            self.broken = [body["status"]] * body["times"]
            return 200, {}
        if route == "/v1/completions":
            if self.broken:
                return self.broken.pop(), {"error": {"message": "not now"}}
            if len(body["prompt"]) + body["max_tokens"] > self.model.config.max_position_embeddings:
                return 400, {"error": {"message": "maximum context length"}}
            return 200, self.complete(body)
        if route == "/collective_rpc" and self.options.dialect == "vllm" and body["method"] == "reload_weights":
            self.load(body["kwargs"]["weights_path"])
            return 200, {"results": [None]}
        if route == "/reset_prefix_cache" and self.options.dialect == "vllm":
            return 200, {"success": True}
        if route == "/update_weights_from_disk" and self.options.dialect == "sglang":
            try:
                self.load(body["model_path"])
            except Exception as error:  # SGLang reports any error of transformers like this
                return 400, {"success": False, "message": str(error)}
            return 200, {"success": True, "message": "Succeeded to update model weights."}
        return 404, {"detail": "Not Found"}


def handler(engine: Engine):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/v1/models"
            self.send(200 if found else 404, {"object": "list", "data": [{"id": "policy", "object": "model"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with engine.lock:
                status, answer = engine.answer(self.path, body)
            if status:
                self.send(status, answer)

        def send(self, status: int, answer: dict) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Handler


class Listener(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--dialect", choices=("vllm", "sglang", "openai"), default="vllm")
    parser.add_argument("--logprobs-mode", choices=("raw_logprobs", "processed_logprobs"), default="processed_logprobs")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    listener = Listener(("127.0.0.1", options.port), handler(Engine(options.folder, options)))
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{listener.server_address[1]}", flush=True)
    sys.stdin.read()  # closes when the process that started this one is gone


if __name__ == "__main__":
    main()
