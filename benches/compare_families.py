"""Times a training step of every family of models beside transformers, step by step in turns, at base width.

Usage: PYTHON benches/compare_families.py [--older PYTHON] [--only bert,electra] [--layers 4] [--batch 8] [--seq 128]
                                          [--steps 4] [--set KEY=JSON ...] [--binary FILE] [--peers eager,sdpa]

PYTHON has torch and a transformers of today, --older one with transformers 4.35 for the families that only that has. A model
has 768 features, 12 heads and --layers of base's 12 layers, with that share of the family's vocabulary, so that layers and
vocabulary keep their proportion; --set changes its config. For each family one process of each library is started; then they
take a step in turns: Cloze, eager, sdpa, Cloze, ... The first step of each is not counted. Prints a JSON line for each, then
a table. "CPU" is the processor time of all threads: other work on the machine, which lengthens a step, changes it little.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from compare import build

# Layers of the base models.
BASE = 12


def usual(layers, vocab, **more):
    return {
        "vocab_size": vocab, "hidden_size": 768, "num_hidden_layers": layers, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "pad_token_id": 0, **more,
    }


def roberta(layers, vocab, **more):
    return usual(layers, vocab, **{"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1, **more})


def bart(layers, vocab, **more):
    """Half of the layers on each side, as the base models have them."""
    half = max(layers // 2, 1)
    return {
        "vocab_size": vocab, "d_model": 768, "encoder_layers": half, "decoder_layers": half, "encoder_attention_heads": 12,
        "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "max_position_embeddings": 1024, **more,
    }


def families(layers, seq):
    """Class, vocabulary of the base model, config of so many layers."""
    local = "sliding_attention"
    rope = {"rope_type": "default"}
    return {
        "albert": ("AlbertForMaskedLM", 30000, lambda v: usual(layers, v, embedding_size=128, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)),
        "bart": ("BartForConditionalGeneration", 50265, lambda v: bart(layers, v)),
        "bert": ("BertForMaskedLM", 30522, lambda v: usual(layers, v)),
        "big_bird": ("BigBirdForMaskedLM", 50358, lambda v: usual(layers, v, max_position_embeddings=4096)),
        "camembert": ("CamembertForMaskedLM", 32005, lambda v: roberta(layers, v)),
        "convbert": ("ConvBertForMaskedLM", 30522, lambda v: usual(layers, v, embedding_size=768)),
        "data2vec-text": ("Data2VecTextForMaskedLM", 50265, lambda v: roberta(layers, v)),
        "deberta": ("DebertaForMaskedLM", 50265, lambda v: usual(layers, v, relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False, type_vocab_size=0, max_relative_positions=-1)),
        "deberta-v2": ("DebertaV2ForMaskedLM", 128100, lambda v: usual(layers, v, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, max_relative_positions=-1, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True)),
        "distilbert": ("DistilBertForMaskedLM", 30522, lambda v: {"vocab_size": v, "dim": 768, "n_layers": layers, "n_heads": 12, "hidden_dim": 3072}),
        "electra": ("ElectraForMaskedLM", 30522, lambda v: usual(layers, v, embedding_size=768)),
        "ernie": ("ErnieForMaskedLM", 30522, lambda v: usual(layers, v)),
        "esm": ("EsmForMaskedLM", 33, lambda v: usual(layers, 33, max_position_embeddings=1026, position_embedding_type="rotary", token_dropout=True, mask_token_id=4, emb_layer_norm_before=False, pad_token_id=1, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)),
        "eurobert": ("EuroBertForMaskedLM", 128256, lambda v: usual(layers, v, num_key_value_heads=12)),
        "flaubert": ("FlaubertWithLMHeadModel", 68729, lambda v: {"vocab_size": v, "n_words": v, "emb_dim": 768, "n_layers": layers, "n_heads": 12}),
        "fnet": ("FNetForMaskedLM", 32000, lambda v: usual(layers, v, pad_token_id=3)),
        "funnel": ("FunnelForMaskedLM", 30522, lambda v: {"vocab_size": v, "d_model": 768, "n_head": 12, "d_head": 64, "d_inner": 3072, "block_sizes": [max(layers // 3, 1)] * 3, "num_decoder_layers": 1}),
        "ibert": ("IBertForMaskedLM", 50265, lambda v: roberta(layers, v)),
        "layoutlm": ("LayoutLMForMaskedLM", 30522, lambda v: usual(layers, v)),
        "longformer": ("LongformerForMaskedLM", 50265, lambda v: roberta(layers, v, max_position_embeddings=4098, attention_window=[512] * layers)),
        "luke": ("LukeForMaskedLM", 50267, lambda v: roberta(layers, v, entity_vocab_size=1000, entity_emb_size=256)),
        "mbart": ("MBartForConditionalGeneration", 250027, lambda v: bart(layers, v)),
        "mega": ("MegaForMaskedLM", 50265, lambda v: {"vocab_size": v, "hidden_size": 768, "num_hidden_layers": layers, "intermediate_size": 1536, "nffn_hidden_size": 1536, "max_positions": 2048, "bidirectional": True, "chunk_size": -1, "shared_representation_size": 128, "pad_token_id": 1}),
        "megatron-bert": ("MegatronBertForMaskedLM", 29056, lambda v: usual(layers, v)),
        "mobilebert": ("MobileBertForMaskedLM", 30522, lambda v: {"vocab_size": v, "num_hidden_layers": 2 * layers}),
        "modernbert": ("ModernBertForMaskedLM", 50368, lambda v: usual(layers, v, intermediate_size=1152, max_position_embeddings=8192, layer_types=["full_attention" if i % 3 == 0 else local for i in range(layers)], local_attention=128, rope_parameters={"full_attention": {"rope_theta": 160000.0, **rope}, local: {"rope_theta": 10000.0, **rope}}, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)),
        "mpnet": ("MPNetForMaskedLM", 30527, lambda v: roberta(layers, v)),
        "mra": (None, 50265, lambda v: roberta(layers, v)),
        "mvp": ("MvpForConditionalGeneration", 50267, lambda v: bart(layers, v, use_prompt=False)),
        "nezha": ("NezhaForMaskedLM", 21128, lambda v: usual(layers, v)),
        "nomic_bert": ("NomicBertForMaskedLM", 30528, lambda v: usual(layers, v, max_position_embeddings=2048)),
        "nystromformer": ("NystromformerForMaskedLM", 30000, lambda v: usual(layers, v, segment_means_seq_len=seq, num_landmarks=64, conv_kernel_size=65)),
        "perceiver": ("PerceiverForMaskedLM", 262, lambda v: {"vocab_size": 262, "max_position_embeddings": seq, "num_self_attends_per_block": 2 * layers}),
        "qdqbert": ("QDQBertForMaskedLM", 30522, lambda v: usual(layers, v)),
        "reformer": ("ReformerForMaskedLM", 30522, lambda v: {"vocab_size": v, "hidden_size": 768, "num_attention_heads": 12, "attention_head_size": 64, "feed_forward_size": 3072, "attn_layers": (["local", "lsh"] * layers)[:layers], "axial_pos_shape": [8, seq // 8], "axial_pos_embds_dim": [256, 512], "max_position_embeddings": seq, "is_decoder": False, "num_buckets": 8, "hash_seed": 0}),
        "rembert": ("RemBertForMaskedLM", 250300, lambda v: usual(layers, v, input_embedding_size=256, output_embedding_size=1664, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)),
        "roberta": ("RobertaForMaskedLM", 50265, lambda v: roberta(layers, v)),
        "roberta-prelayernorm": ("RobertaPreLayerNormForMaskedLM", 50265, lambda v: roberta(layers, v)),
        "roc_bert": ("RoCBertForMaskedLM", 21128, lambda v: usual(layers, v)),
        "roformer": ("RoFormerForMaskedLM", 50000, lambda v: usual(layers, v, embedding_size=768, max_position_embeddings=1536)),
        "squeezebert": ("SqueezeBertForMaskedLM", 30528, lambda v: usual(layers, v, embedding_size=768)),
        "tapas": ("TapasForMaskedLM", 30522, lambda v: usual(layers, v, max_position_embeddings=1024)),
        "wav2vec2": ("Wav2Vec2ForCTC", 32, lambda v: usual(layers, 32)),
        "xlm": ("XLMWithLMHeadModel", 30145, lambda v: {"vocab_size": v, "n_words": v, "emb_dim": 768, "n_layers": layers, "n_heads": 12}),
        "xlm-roberta": ("XLMRobertaForMaskedLM", 250002, lambda v: roberta(layers, v)),
        "xlm-roberta-xl": ("XLMRobertaXLForMaskedLM", 250880, lambda v: roberta(layers, v)),
        "xmod": ("XmodForMaskedLM", 250002, lambda v: roberta(layers, v, default_language="en_XX", languages=["en_XX", "de_DE"])),
        "yoso": ("YosoForMaskedLM", 50265, lambda v: roberta(layers, v, max_position_embeddings=4096, use_expectation=True)),
    }


class Process:
    """A library that takes a step of a model when told to."""

    def __init__(self, command):
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=HERE)

    def ask(self, line):
        """What it answers to a line; without one, what it says by itself."""
        if line:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or "{}")
        if not answer:
            self.log.seek(0)
            raise RuntimeError((self.log.read().strip().splitlines() or ["it ended"])[-1][:300])
        return answer

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(name, binary, peers, sizes, steps, row):
    """Results by library: medians over the counted steps. `peers` are processes and their arguments by library."""
    running, results = {}, {}
    ours = Process([binary, *sizes])
    for library, process, arguments in [("cloze", ours, None), *peers]:
        try:
            ready = process.ask(arguments)
            process.ask("step")
            running[library] = (process, ready, [])
        except RuntimeError as error:
            print(f"note: {name}: {library}: {error}", file=sys.stderr)
    for _ in range(steps):
        for process, _, taken in running.values():
            taken.append(process.ask("step"))
    ours.close()
    for library, (process, ready, taken) in running.items():
        if process is not ours:
            process.tell("close")
        middle = lambda key: statistics.median(step[key] for step in taken)
        results[library] = {
            "bench": "families", "family": name, **row, "library": library, "peer": ready.get("peer", "cloze"),
            "parameters": ready["parameters"], "median_s": middle("wall_s"), "min_s": min(s["wall_s"] for s in taken),
            "cpu_s": middle("cpu_s"), "forward_s": middle("forward_s"), "backward_s": middle("backward_s"),
            "update_s": middle("update_s"), "peak_rss_mib": taken[-1]["peak_rss_mib"], "empty_mib": ready.get("empty_mib", 0),
        }
        print(json.dumps(results[library]), flush=True)
    return results


def has(python, names):
    """Those of the classes that this Python's transformers has."""
    code = "import sys, warnings; warnings.filterwarnings('ignore'); import transformers\n" \
        "print(transformers.__version__, *[n for n in sys.argv[1:] if hasattr(getattr(transformers, n, None), 'forward')])"
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return set(done.stdout.split()[1:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--older", help="a Python with transformers 4.35")
    parser.add_argument("--only", help="families, separated by commas")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON")
    parser.add_argument("--binary", help="the benchmark, if it is built already")
    parser.add_argument("--peers", default="eager,sdpa", help="ways of attention of the peer, or none")
    a = parser.parse_args()
    known = families(a.layers, a.seq)
    names = a.only.split(",") if a.only else list(known)
    ours = a.binary or build("families", [])
    classes = [known[name][0] for name in names if known[name][0]]
    peers = [way for way in a.peers.split(",") if way in ("eager", "sdpa")]
    pythons = [(python, has(python, classes)) for python in (sys.executable, a.older) if python and peers]
    changes = dict(change.split("=", 1) for change in a.set)
    row = {"layers": a.layers, "batch": a.batch, "seq": a.seq, "set": changes}
    table, servers = [], {}
    for name in names:
        kind, vocab, config = known[name]
        seq = a.seq * 320 if name == "wav2vec2" else a.seq
        with tempfile.TemporaryDirectory() as folder:
            values = {"model_type": name, **config(max(vocab * a.layers // BASE, 33))}
            values.update({key: json.loads(value) for key, value in changes.items()})
            with open(os.path.join(folder, "config.json"), "w") as file:
                json.dump(values, file)
            sizes = ["--config", folder, "--batch", str(a.batch), "--seq", str(seq)]
            python = next((python for python, classes in pythons if kind in classes), None)
            # 4.35 has no sdpa.
            ways = [way for way in peers if python and (way == "eager" or python == sys.executable)]
            asked = []
            for way in ways:
                if (python, way) not in servers:
                    servers[python, way] = Process([python, os.path.join(HERE, "peer_families.py")])
                arguments = " ".join([*sizes, "--class", kind, "--attention", way])
                asked.append((way, servers[python, way], arguments))
            table.append((name, measure(name, ours, asked, sizes, a.steps, row)))
    for server in servers.values():
        server.close()
    print(f"\n| {a.batch} x {a.seq}, {a.layers} layers | cloze s | eager s | sdpa s | best peer / cloze | CPU: best peer / cloze | memory, cloze MiB | memory, peer MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, results in table:
        cloze = results.get("cloze")
        peers = [results[library] for library in ("eager", "sdpa") if library in results]
        show = lambda library: f"{results[library]['median_s']:.3f}" if library in results else ""
        ratio = lambda key: f"{min(p[key] for p in peers) / cloze[key]:.2f}" if peers and cloze else ""
        memory = f"{min(p['peak_rss_mib'] - p['empty_mib'] for p in peers):.0f}" if peers else ""
        ours_memory = f"{cloze['peak_rss_mib']:.0f}" if cloze else ""
        print(f"| {name} | {show('cloze')} | {show('eager')} | {show('sdpa')} | {ratio('median_s')} | {ratio('cpu_s')} | {ours_memory} | {memory} |")


if __name__ == "__main__":
    main()
