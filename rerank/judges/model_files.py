"""Find, download, load and fingerprint a vision-language model; only safetensors, and no code of its folder."""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from tqdm import tqdm

from jzi.encode.device import best_device, free_bytes
from jzi.encode.encoders.hf_model import check_size, quiet_transformers
from jzi.errors import EncoderError, RerankError, first_line
from jzi.rerank.judges.families import Family, family_of
from jzi.store.disk.digest_memory import remembered_sha256

#: Files of a model: weights, configs, tokenizer and chat template. No pickles, no code.
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_OTHER_WEIGHTS = ("original/*", "consolidated*", "onnx/*")

#: Fraction of a GPU's free memory that weights may take before they are spread over all devices.
_SHARE = 0.8


def find_folder(name: str) -> Path:
    """Return the folder of a model, from the Hugging Face hub's local cache or the hub if it is no folder.

    Args:
        name: folder, or Hugging Face id. What is downloaded is printed with its size.

    Raises:
        RerankError: it cannot be found or downloaded, or its config is refused.
    """
    if Path(name).is_dir():
        return Path(name)
    options: dict[str, Any] = {"allow_patterns": list(_FILES), "ignore_patterns": list(_OTHER_WEIGHTS)}
    try:
        try:
            folder = Path(snapshot_download(name, local_files_only=True, **options))
            if _complete(folder):
                return folder
        except OSError:  # not in the cache
            pass
        family_of(Path(hf_hub_download(name, "config.json")).parent)
        files = HfApi().model_info(name, files_metadata=True).siblings or []
        size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
        tqdm.write(f"downloading {name} from the Hugging Face hub: {size / 1e9:.1f} GB of weights", file=sys.stderr)
        return Path(snapshot_download(name, **options))
    except RerankError:
        raise
    except Exception as error:  # of huggingface_hub and the network, of many kinds
        raise RerankError(
            f"the model {name!r} is not a local folder and cannot be downloaded from the Hugging Face hub "
            f"({first_line(error)}): check the name and the network, or give a folder"
        ) from error


def _complete(folder: Path) -> bool:
    """Whether a snapshot holds all weights that its index names."""
    weights = {file.name for file in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return bool(weights)
    return set(json.loads(index.read_bytes())["weight_map"].values()) <= weights


def load_model(name: str, folder: Path, family: Family, quantize: int, device: str | None) -> Any:
    """Load the weights in their own precision, onto one device if they fit.

    Args:
        name: for error messages.
        folder: of the model.
        family: of the model.
        quantize: bits of the weights, 4 or 8; 0 to leave them as they are.
        device: to compute on; a GPU if there is one by default, and several if the weights are too large for one.

    Raises:
        RerankError: there are no safetensors, they are damaged or incomplete, or the model is too large.
    """
    import transformers

    quiet_transformers()
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if not size:
        raise RerankError(
            f"{folder} has no weights as safetensors, and jzi does not read pickles: convert them with "
            "`save_pretrained`, or use another model"
        )
    target = torch.device(device or best_device())
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    model_class = getattr(transformers, family.model_class)
    try:
        check_size(name, model_class, transformers.AutoConfig.from_pretrained(folder, **options), size)
        model, report = model_class.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=True,
            output_loading_info=True,
            **options,
            **_placement(target, size, quantize, spread=device is None),
        )
    except (RerankError, MemoryError):
        raise
    except EncoderError as error:
        raise RerankError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise RerankError(
            f"{name} ({size / 1e9:.1f} GB) does not fit into the memory of {target}: use a smaller model, or "
            "rerank.quantize = 4"
        ) from error
    except Exception as error:  # transformers' own errors are of many kinds
        raise RerankError(
            f"the model in {folder} cannot be loaded ({first_line(error)}): copy or download it again"
        ) from error
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if missing:
        raise RerankError(
            f"the model in {folder} lacks {len(missing)} weights ({missing[0]:.100}, ...): copy or download it again"
        )
    # Of the folder's settings for generation only the end of an answer is used
    end = model.generation_config.eos_token_id
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=end, pad_token_id=end[0] if isinstance(end, list) else end
    )
    return model.eval().requires_grad_(False)


def _placement(target: torch.device, size: int, quantize: int, spread: bool) -> dict[str, Any]:
    import transformers

    if quantize:
        if find_spec("bitsandbytes") is None:
            raise RerankError(
                f"rerank.quantize = {quantize} needs bitsandbytes: `pip install bitsandbytes`, or set it to 0"
            )
        bits: dict[str, Any] = {f"load_in_{quantize}bit": True}
        if quantize == 4:
            bits["bnb_4bit_compute_dtype"] = torch.bfloat16
        return {"quantization_config": transformers.BitsAndBytesConfig(**bits), "device_map": {"": target}}
    if spread and target.type == "cuda" and size > _SHARE * free_bytes(target):
        return {"device_map": "auto"}
    return {"device_map": {"": target}}


def model_fingerprint(folder: Path, **settings: Any) -> str:
    """Compute the SHA-256 over the files of a model and settings.

    Args:
        folder: of the model.
        settings: whatever else answers depend on; of JSON.

    Returns:
        The digest in hexadecimal.

    Raises:
        RerankError: a file cannot be read.
    """
    files = sorted({file for pattern in _FILES for file in folder.glob(pattern) if file.is_file()})
    try:
        digests = {file.name: remembered_sha256(file) for file in files}
    except OSError as error:
        raise RerankError(f"{error.filename} cannot be read ({error.strerror}): copy the model again") from error
    return hashlib.sha256(json.dumps([digests, settings], sort_keys=True).encode()).hexdigest()
