"""Files beside a released model's weights: chat templates, special tokens, ends of answers.

Chat templates are copied unchanged; nothing here runs one. Ids of the text vocabulary are the same
in the joint vocabulary, so fields with such ids stay correct. Tokens and ids that the model does
not have are dropped, because their ids may belong to codes now.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.convert.folder_files import has, inside, read_object, read_text, shown
from speechlm_jax.convert.tokenizers import CONFIG, FILE
from speechlm_jax.errors import UserError

SPECIAL_TOKENS = "special_tokens_map.json"
GENERATION = "generation_config.json"
MODEL = "config.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE = ("additional_special_tokens", "extra_special_tokens")
KEPT = ("chat_template", "padding_side", "truncation_side", "model_input_names")
IDS = ("suppress_tokens", "begin_suppress_tokens")  # fields of ids, in addition to `*_token_id`

_log = logging.getLogger("speechlm.convert")


@dataclasses.dataclass(frozen=True)
class Companions:
    """Contents of the files beside a model's weights.

    Attributes:
      tokenizer: fields of tokenizer_config.json.
      templates: text of each chat template that is a file, by the file's name.
      generation: fields of generation_config.json.
    """

    tokenizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    templates: dict[str, str] = dataclasses.field(default_factory=dict)
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def eos(self) -> str | None:
        """Token that ends the model's output; None if it has none."""
        token = self.tokenizer.get("eos_token")
        return token["content"] if isinstance(token, dict) else token

    def write(self, folder: Path) -> list[str]:
        """Writes the files that `read_companions` reads; returns their names."""
        for name, template in self.templates.items():
            artifacts.write_bytes(folder / name, template.encode())
        written = {CONFIG: self.tokenizer, GENERATION: self.generation}
        written = {name: data for name, data in written.items() if data}
        for name, data in written.items():
            artifacts.write_json(folder / name, data)
        return [*self.templates, *written]

    def of_export(self, *, length: int, eos: tuple[str, int]) -> "Companions":
        """Returns the companions of an exported model.

        Args:
          length: longest context of the model, in ids.
          eos: token and id that end its documents; the id also ends its output.
        """
        token, id_ = eos
        fields = {
            "eos_token": token,
            "pad_token": token,  # without these two, a class of `transformers` adds its own tokens
            "unk_token": token,
            **self.tokenizer,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": length,
            "clean_up_tokenization_spaces": False,
        }
        ends = list(dict.fromkeys([*_listed(self.generation.get("eos_token_id")), id_]))
        generation = {**self.generation, "eos_token_id": ends if len(ends) > 1 else id_}
        return dataclasses.replace(self, tokenizer=fields, generation=generation)


def read_companions(folder: Path, tokens: Mapping[str, int], *, size: int) -> Companions:
    """Reads the companions of a model's folder; a missing file gives no fields.

    Args:
      tokens: tokens of the text vocabulary with their ids.
      size: number of rows of the model's embedding table.

    Raises:
      UserError: a file is broken, or a field has a wrong type.
    """
    found: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS, CONFIG):  # fields of the second file override those of the first
        found |= read_object(folder, name) if has(folder, name) else {}
    fields = {name: found[name] for name in KEPT if found.get(name) is not None}
    _check_template(fields.get("chat_template"), folder)
    for name in NAMED:
        if found.get(name) is not None and _is_there(found[name], tokens, f"{folder}: {name}"):
            fields[name] = found[name]
    for name in MORE:
        more = found.get(name)
        more = list(more.values()) if isinstance(more, dict) else more or []
        if not isinstance(more, list):
            raise UserError(f"{folder}: {name} is {shown(more)}, no list of tokens")
        if kept := [one for one in more if _is_there(one, tokens, f"{folder}: {name}")]:
            fields[name] = kept
    return Companions(fields, _templates(folder), _generation(folder, size))


def _is_there(token: Any, tokens: Mapping[str, int], where: str) -> bool:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise UserError(f"{where} is {shown(token)}, no token")
    if content not in tokens:
        _log.warning("%s: %s is no token of %s; dropped", where, shown(content), FILE)
    return content in tokens


def _check_template(template: Any, folder: Path) -> None:
    several = template if isinstance(template, list) else []
    are_named = several and all(
        isinstance(one, dict)
        and isinstance(one.get("name"), str)
        and isinstance(one.get("template"), str)
        for one in several
    )
    if not (template is None or isinstance(template, str) or are_named):
        raise UserError(f"{folder / CONFIG}: chat_template is {shown(template)}, no template")


def _templates(folder: Path) -> dict[str, str]:
    names = [TEMPLATE] if has(folder, TEMPLATE) else []
    if (folder / TEMPLATES).is_dir():
        found = sorted(inside(folder, TEMPLATES).glob("*.jinja"))
        names += [f"{TEMPLATES}/{path.name}" for path in found]
    return {name: read_text(folder, name) for name in names}


def _generation(folder: Path, size: int) -> dict[str, Any]:
    """Reads the generation config; without `eos_token_id`, it takes that of config.json."""
    found = read_object(folder, GENERATION) if has(folder, GENERATION) else {}
    for name in ("_from_model_config", "transformers_version"):
        found.pop(name, None)
    if found.get("eos_token_id") is None and has(folder, MODEL):
        found["eos_token_id"] = read_object(folder, MODEL).get("eos_token_id")
    for name in [key for key in found if key in IDS or key.endswith("_token_id")]:
        ids = _listed(found[name])
        if any(type(id_) is not int for id_ in ids):
            raise UserError(f"{folder}: {name} is {shown(found[name])}, no id and no list of ids")
        kept = [id_ for id_ in ids if 0 <= id_ < size]
        if kept != ids:
            _log.warning("%s: %s names ids that the model has no row for; dropped", folder, name)
        found[name] = kept if isinstance(found[name], list) or not kept else kept[0]
        if not kept:
            del found[name]
    return found


def _listed(ids: Any) -> Sequence[Any]:
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]
