"""The Python library's part of tests/it/hub_python.rs: the same stand-in, the same cache, the other client."""

import json
import sys
import time

import huggingface_hub as hub


def main(task, *arguments):
    if task == "check":
        return None
    if task == "download":
        repo, *files = arguments
        return [hub.hf_hub_download(repo, file) for file in files]
    if task == "cached":
        repo, *files = arguments
        return [hub.hf_hub_download(repo, file, local_files_only=True) for file in files]
    if task == "upload":
        repo, folder = arguments
        hub.create_repo(repo, exist_ok=True)
        return hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="From Python").oid
    if task == "timed":
        began = time.perf_counter()
        main(*arguments)
        return time.perf_counter() - began
    if task == "whoami":
        return hub.whoami()["name"]
    if task == "token":
        return hub.get_token()
    if task == "login":
        hub.login(token=arguments[0], add_to_git_credential=False)
        return None
    if task == "scan":
        info = hub.scan_cache_dir()
        return {"repos": [repo.repo_id for repo in info.repos], "warnings": [str(warning) for warning in info.warnings]}
    if task == "card":
        from huggingface_hub import ModelCard

        card = ModelCard.load(arguments[0])
        results = [(r.metric_type, r.metric_value) for r in card.data.eval_results or []]
        return {"data": card.data.to_dict(), "results": results}
    if task == "dataset":
        import datasets

        datasets.disable_progress_bars()
        # The stand-in lists no folders, which the library would look through: the repository is fetched whole.
        repo, *config = arguments
        folder = hub.snapshot_download(repo, repo_type="dataset")
        loaded = datasets.load_dataset(folder, *config)
        train = loaded["train"]
        card = hub.DatasetCard.load(f"{folder}/README.md").data.to_dict()["dataset_info"]
        infos = {info["config_name"]: info for info in (card if isinstance(card, list) else [card])}
        card = {split["name"]: split["num_examples"] for split in infos[config[0] if config else "default"]["splits"]}
        return {
            "splits": {name: split.num_rows for name, split in loaded.items()},
            "card": card,
            "first": train[0],
        }
    if task == "logits":
        import torch
        from transformers import AutoModelForMaskedLM

        repo, expected = arguments
        # What is too long for a command line comes in a file.
        if expected.startswith("@"):
            with open(expected[1:]) as file:
                expected = file.read()
        ids, logits = json.loads(expected)
        model = AutoModelForMaskedLM.from_pretrained(repo).eval()
        with torch.no_grad():
            ours = model(input_ids=torch.tensor([ids])).logits.flatten()
        return (ours - torch.tensor(logits)).abs().max().item()
    raise ValueError(task)


print(json.dumps(main(*sys.argv[1:]), default=str))
