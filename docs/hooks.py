"""What the site's build (mkdocs.yml) needs beyond the plugins' settings."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Gives every page and file its place in the repository, from where its links lead on."""
    own = [file for file in files if file.src_dir == config.docs_dir]
    paths = [Path(config.docs_dir, file.src_uri) for file in own]
    for pattern in config.extra["files"]:
        paths += sorted(ROOT.glob(pattern))
    for file in own:
        files.remove(file)
    for path in paths:
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


class SphinxRoles(griffe.Extension):
    """Turns the roles in docstrings, as :meth:`train`, into references of mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        owner = obj if obj.is_class else obj.parent

        def reference(role: re.Match[str]) -> str:
            shortened, name = role.groups()
            target = name
            if owner is not None and owner.is_class and name not in owner.members:
                # Scopes do not lead to what a class inherits.
                inherited = owner.all_members.get(name)
                target = name if inherited is None else inherited.canonical_path
            return f"[`{name.rpartition('.')[2] if shortened else name}`][{target}]"

        obj.docstring.value = _ROLE.sub(reference, obj.docstring.value)
