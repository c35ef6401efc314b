"""Take each guard out of chapters and tools once and see that its rows fail: the proof that the fault tests can fail.

    python3 tools/guards.py            every guard; takes about twenty minutes
    python3 tools/guards.py WORD ...   the guards with one of these words in their name

A guard is a piece of a kept cell, which is replaced in memory, or of a tool, which is replaced in a copy of the
repository; the tests that its row names are run. A guard whose rows all pass without it is reported as unproved, and
the exit code says so.
"""

import contextlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import chain
import pytest

# (what the guard does, the piece of code, what stands there without it, the tests that must notice)
DATA = [
    ('size offered is the published one',
     'if answer.length != size - start:',
     'if False:',
     'bad_answer or another_length or download_arrives or next_mirror'),
    ('too slow', 'if counted < slowest * seconds:', 'if False:', 'bad_answer or slow_line'),
    ('time-out',
     'urllib.request.urlopen(request, timeout=timeout)',
     'urllib.request.urlopen(request, timeout=None)',
     'silent or stall'),
    ('ends early', 'if part.stat().st_size < size:', 'if False:', 'bad_answer'),
    ('md5 of a download', 'if digest(part) == md5:', 'if True:', 'bad_answer or changed or cannot_continue'),
    ('start anew after a wrong part',
     '    if have:\n        return download',
     '    if False:\n        return download',
     'changed'),
    ('Content-Range looked at',
     'and str(answer.headers["Content-Range"]).startswith(f"bytes {start}-")',
     '',
     'cannot_continue or where_an_answer'),
    ('416 starts anew', 'if getattr(error, "code", None) != 416:', 'if True:', 'cannot_continue'),
    ('200 starts anew',
     '            return answer, 0\n        if',
     '            return answer, start\n        if',
     'cannot_continue'),
    ('resume',
     'have = min(part.stat().st_size, size) if part.exists() else 0',
     'have = 0',
     'goes_on or part_that_is_whole'),
    ('never under the final name',
     'part = path.with_name(path.name + ".part")',
     'part = path',
     'bad_answer or stop_button'),
    ('one printable line',
     'text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())',
     'pass',
     'bad_answer'),
    ('certificates',
     'urllib.request.urlopen(request, timeout=timeout)',
     ('urllib.request.urlopen(request, timeout=timeout, context=__import__("ssl")._create_un'
      'verified_context())'),
     'certificate'),
    ('room looked for', 'if shutil.disk_usage(DATA).free < 600e6:', 'if False:', 'no_room'),
    ('full disk said',
     '            if error.errno is None:  # it says already what to do\n                raise\n',
     '            raise\n',
     'fills_up'),
    ('folder cannot be made',
     '    except OSError as error:\n        raise OSError(f"The folder {folder} cannot be made',
     '    except ZeroDivisionError as error:\n        raise OSError(f"The folder {folder} cannot be made',
     'cannot_be_written or where_the_folder'),
    ('lock', 'fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)', 'pass', 'two_processes'),
    ("archive's digest", 'if digest(path, kind) != expected:', 'if False:', 'damaged_archive or npm_that_fails'),
    ('archive kept when put by hand', 'if archive.name not in by_hand:', 'if True:', 'by_hand'),
    ("npm's folder removed",
     '    finally:\n        shutil.rmtree(folder, ignore_errors=True)\n    return path',
     '    finally:\n        pass\n    return path',
     'npm_that_fails'),
    ("npm's failure caught",
     'except (OSError, subprocess.SubprocessError) as error:',
     'except ZeroDivisionError as error:',
     'npm_that_fails'),
    ('members: once and of the size',
     'missing.pop(member.name, None) != member.size or',
     'missing.pop(member.name, None) is ... or',
     'bad_archive'),
    ('members: plain files', 'not member.isreg() or member.issparse()', 'False', 'bad_archive'),
    ('members: none missing',
     '    if missing:\n        raise ValueError(f"it lacks',
     '    if False:\n        raise ValueError(f"it lacks',
     'bad_archive'),
    ('members: nothing large beside', 'elif member.size > 1 << 20:', 'elif False:', 'bad_archive'),
    ('archive errors are one kind',
     'except (OSError, EOFError, zlib.error, tarfile.TarError, RuntimeError) as error:',
     'except ZeroDivisionError as error:',
     'bad_archive'),
    ("unpickler's list of names",
     '        if f"{module} {name}" in self.names:\n            return Inert\n        raise',
     '        return super().find_class(module, name)\n        raise',
     'pickle_that_calls or fuzz'),
    ('names answered by an Inert',
     '            return Inert\n        raise',
     '            return super().find_class(module, name)\n        raise',
     'array_that_claims or plain_batches or wrong_contents or fuzz'),
    ('extension codes', 'step.name.startswith("EXT") or', '', 'extension'),
    ('memory places', 'or step.name.endswith("PUT") and argument > len(steps)', '', 'memory'),
    ('pickle errors are one kind',
     '    except Exception as error:  # a damaged',
     '    except ZeroDivisionError as error:  # a damaged',
     'truncated or claim'),
    ('type of the numbers', 'kind.given[0] in (b"u1", "u1") and', '', 'wrong_contents'),
    ('shape', 'shape == (count, RECORD - 1) and', '', 'wrong_contents'),
    ('order', 'not fortran', 'True', 'wrong_contents'),
    ('labels a list', 'type(labels) is list and', '', 'wrong_contents'),
    ('number of labels', 'len(labels) == count', 'True', 'wrong_contents'),
    ('labels in range', 'type(label) is int and 0 <= label < 10', 'True', 'wrong_contents'),
    ('labels whole numbers', 'type(label) is int and 0', '0', 'wrong_contents'),
    ("record files' digests", 'or digest(folder / name) != md5]', ']', 'flipped or damaged_files'),
    ('judge', '    if hashlib.md5(raw).hexdigest() != RECORD_MD5[name]:', '    if False:', 'something_else'),
    ('whole records', 'not len(raw) or len(raw) % RECORD or', '', 'whole_records'),
    ('labels below ten', ' or raw[::RECORD].max() > 9', '', 'whole_records'),
    ('write beside, then rename', 'draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")', 'draft = path', 'write'),
    ('draft removed', '            draft.unlink()', '            pass', 'write_that_is_cut'),
    ('write errors said',
     'except (OSError, RuntimeError) as error:\n        raise OSError(f"{path.name} could',
     'except ZeroDivisionError as error:\n        raise OSError(f"{path.name} could',
     'write_that_is_cut'),
    ('no NaN read', ', parse_constant=refuse_nan', '', 'damaged_results'),
    ('no NaN written', ', allow_nan=False', '', 'nan_is_never'),
    ('results: same chapter', 'results["chapter"] == chapter and', '', 'something_else'),
    ('results: same preset', 'results["preset"] == PRESET and', '', 'something_else'),
    ('results: same data', ' and results["data_md5"] == data_md5(STORE)', '', 'something_else or older'),
    ('results: damaged',
     'except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:\n        print',
     'except ZeroDivisionError as error:\n        print',
     'damaged_results or unreadable'),
    ('preset', 'if preset not in ("smoke", "quick", "full", "long"):', 'if False:', 'wrong_setting'),
    ('seeds',
     "    except ValueError:\n        raise ValueError(f'NOLABELS_SEEDS",
     "    except ZeroDivisionError:\n        raise ValueError(f'NOLABELS_SEEDS",
     'wrong_setting'),
    ("device's name", 'if kind not in ("cpu", "cuda", "mps"):', 'if False:', 'wrong_setting'),
    ('device is there', 'if kind not in ("cpu", fastest):', 'if False:', 'not_there'),
    ('older Python', 'if sys.hexversion < 0x030A0000:', 'if False:', 'older_python'),
    ('older torch', 'split(".")[:2]) < (2, 9):', 'split(".")[:2]) < (0, 0):', 'older_torch'),
    ('data of the repository', 'if Path(folder, "README.md").is_file()', 'if False', 'another_folder'),
    ('no locks on Windows', '        if fcntl:', '        if True:', 'without_locks'),
]
LEARNING = [
    ('checkpoints run no code',
     'map_location="cpu", weights_only=True',
     'map_location="cpu", weights_only=False',
     'damaged_checkpoint'),
    ('checkpoints of this training', 'content["header"] != header or ', '', 'damaged_checkpoint'),
    ('checkpoints at a step that can be', ' or not 0 < content["step"] <= header["steps"]', '', 'damaged_checkpoint'),
    ('checkpoints of this network',
     'if {key: t.shape for key, t in saved.items()} != {key: t.shape for key, t in own.items()}:',
     'if False:',
     'refused_checkpoint or damaged_checkpoint'),
    ('checkpoints without NaN',
     'if not all(t.isfinite().all() for t in saved.values()):',
     'if False:',
     'damaged_checkpoint'),
    ('checkpoint errors are one kind',
     'except Exception as error:\n        raise ValueError(\n            f"{path.name} cannot',
     'except ZeroDivisionError as error:\n        raise ValueError(\n            f"{path.name} cannot',
     'damaged_checkpoint'),
    ('a loss that is no number', 'if not math.isfinite(state["loss"]):', 'if False:', 'no_number'),
    ('Ctrl-C waits for the step',
     'before = signal.signal(signal.SIGINT, lambda *_: stops.append(True)) if in_main else None',
     'before = signal.getsignal(signal.SIGINT)',
     'interrupt'),
    ('Ctrl-C is given back', '            signal.signal(signal.SIGINT, before)', '            pass', 'interrupt'),
    ('saved before stopping', 'if stops or step + 1 == steps', 'if step + 1 == steps', 'interrupt'),
    ('optimizers are saved',
     '[] if finished else [optimizer.state_dict() for optimizer in state["optimizers"]]',
     '[]',
     'interrupt'),
    ('other settings, other file', 'text = json.dumps(settings, sort_keys=True)', 'text = ""', 'other_settings'),
    ('other code, other file', 'text += ast.unparse(node)', 'pass', 'fingerprint'),
    ('frozen means frozen',
     ('assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().'
      'items()), "the backbone moved"'),
     'pass',
     'frozen'),
]


# the same for guards of the tools, with the tool's file behind the name
TOOLS = [
    ('a notebook that is not there', 'chain.py',
     'except FileNotFoundError:\n        raise Stop', 'except ZeroDivisionError:\n        raise Stop', 'not_there_is_named'),
    ('a broken notebook', 'chain.py',
     'except (ValueError, TypeError) as fault:\n        raise Stop(f"{path.name} is not a whole',
     'except ZeroDivisionError as fault:\n        raise Stop(f"{path.name} is not a whole', 'broken_notebook'),
    ('a cell without id or kind', 'chain.py', 'except KeyError as fault:', 'except ZeroDivisionError as fault:', 'broken_notebook'),
    ('two cells of one id', 'chain.py', 'if twice:', 'if False:', 'broken_notebook'),
    ('a cell that is no Python', 'chain.py', 'if kind == "code":', 'if False:', 'broken_notebook'),
    ('one opening cell of each kind', 'chain.py',
     'if len(cells) != 1 or cells[0]["cell_type"] != "code":', 'if False:', 'opening_cells'),
    ('a name defined twice', 'chain.py', 'if name in home:', 'if False:', 'two_kept_cells'),
    ('code changed while it ran', 'chain.py', 'if code_hash(fresh) != code_hash(nb):', 'if False:', 'changed_during'),
    ('a faulty run is not recorded', 'chain.py',
     'if faults or not (SITTING / f"{name}.json").exists():', 'if False:', 'must_not_be_recorded'),
    ('private paths and names', 'chain.py', 'for found in private("\\n".join(shown))]', 'for found in []]', 'must_not_be_recorded'),
    ('no complaints on stderr', 'chain.py', 'if output.get("name") == "stderr":', 'if False:', 'must_not_be_recorded'),
    ('pictures have an alt text', 'chain.py', 'if "image/png" in data and not output', 'if False and not output', 'must_not_be_recorded'),
    ('a recap edited by hand', 'chain.py', 'source(the_cell(path, nb, "recap")) != recap(path)', 'False', 'spoiled'),
    ('recorded figures edited by hand', 'chain.py', 'if source(the_cell(path, nb, "recorded")) != recorded(path):', 'if False:', 'spoiled'),
    ('one parameter cell for all', 'chain.py', 'if len(parameters) > 1:', 'if False:', 'spoiled'),
    ('code that is not the recorded one', 'chain.py', 'series.get("code_hash") != code_hash(nb):', 'False:', 'spoiled'),
    ('a number that was not measured', 'chain.py', 'elif new != found[2]:', 'elif False:', 'spoiled'),
    ('a marker that is not closed', 'chain.py', 'if text.count("<!--=") != len(MARKER.findall(text)):', 'if False:', 'spoiled'),
    ('a marker that would show', 'chain.py', 'if (fenced or re.match', 'if False and (fenced or re.match', 'spoiled'),
    ('a path that results do not have', 'chain.py', 'except (KeyError, IndexError, TypeError, ValueError):',
     'except ZeroDivisionError:', 'spoiled'),
    ('results: every key', 'chain.py', 'if not isinstance(found.get(key), kind)]', 'if False]', 'does_not_fit_in_a_results'),
    ('results: chapter and preset', 'chain.py',
     'if found["chapter"] != name or found["preset"] != preset:', 'if False:', 'does_not_fit_in_a_results'),
    ('results: agreed rows', 'chain.py', 'if not ROWS.fullmatch(row) or not', 'if False and not', 'does_not_fit_in_a_results'),
    ('results: the mean is one', 'chain.py',
     'abs(cell.get("mean", -1) - statistics.mean(values)) > 0.01', 'False', 'does_not_fit_in_a_results'),
    ('results: the deviation is one', 'chain.py',
     'abs(cell.get("std", -1) - (statistics.stdev(values) if len(values) > 1 else 0)) > 0.01', 'False', 'does_not_fit_in_a_results'),
    ('results: damaged', 'chain.py', 'except ValueError as fault:\n        raise Stop(f"data/results',
     'except ZeroDivisionError as fault:\n        raise Stop(f"data/results', 'damaged_results'),
    ('networks that nobody names', 'chain.py', 'for file in sorted(there ^ published_backbones())]', 'for file in []]', 'published_lent'),
    ('notebooks stay small', 'chain.py', 'if path.stat().st_size > 1e6:', 'if False:', 'too_big'),
    ('an address of another form', 'chain.py', 'if url and not re.fullmatch', 'if False and not re.fullmatch', 'another_form'),
    ('older Python', 'run.py', 'if sys.version_info < (3, 10):\n            raise', 'if False:\n            raise', 'older_python_is_told'),
    ('no half environment', 'run.py', 'except BaseException:\n        shutil.rmtree(VENV, ignore_errors=True)\n',
     'except BaseException:\n', 'interrupted_installation or did_not_help'),
    ('a killed installation', 'run.py', 'if os.path.exists(VENV) and not os.path.exists(UNFINISHED):', 'if os.path.exists(VENV):',
     'killed_installation'),
    ("venv's parts", 'run.py', 'if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:',
     'if False:', 'venv_s_parts'),
    ('pip that fails', 'run.py', '"--disable-pip-version-check"] + list(arguments)):',
     '"--disable-pip-version-check"] + list(arguments)) and False:', 'failing_pip'),
    ('--here says what is missing', 'run.py', 'if lacks:\n            raise Stop("This environment',
     'if False:\n            raise Stop("This environment', 'here_says'),
    ('a .venv that is none', 'run.py', 'if lacks:\n            raise Stop(".venv is there',
     'if False:\n            raise Stop(".venv is there', 'that_is_none'),
    ('packages that do not import', 'run.py', 'print("packages that import:", fault)', 'pass', 'does_not_import'),
    ('write beside, then rename', 'run.py', 'part = "{}.part".format(path)', 'part = str(path)', 'cut_write'),
    ('Ctrl-C is no traceback', 'run.py', 'except KeyboardInterrupt:\n        print', 'except ZeroDivisionError:\n        print',
     'ctrl_c_in_a_tool'),
    ('a kernel ended from outside', 'run.py', 'except DeadKernelError:', 'except ZeroDivisionError:', 'must_not_be_recorded'),
    ('the kernel is our own', 'run.py', 'KernelSpecManager(kernel_dirs=[])', 'KernelSpecManager()', 'kernel_is_this'),
    ('chapters that there are', 'run.py', 'if chapter not in there:', 'if False:', 'bad_arguments'),
    ('lists of numbers', 'run.py', 'if text and not re.fullmatch', 'if False and not re.fullmatch', 'bad_arguments'),
]
SITE = [
    ('a picture without description', 'build_site.py', 'if not alt:', 'if False:', 'without_description'),
    ('half an address', 'build_site.py', 'if given.url and not re.fullmatch', 'if False and not re.fullmatch', 'half_an_address'),
    ('no npm', 'build_site.py', 'if not shutil.which("npm"):', 'if False:', 'without_npm'),
    ('npm fails', 'build_site.py', 'PUPPETEER_SKIP_DOWNLOAD="1")):', 'PUPPETEER_SKIP_DOWNLOAD="1")) and False:', 'npm_that_fails'),
    ('the old site stays', 'build_site.py', 'with tempfile.TemporaryDirectory() as work:\n',
     'shutil.rmtree(target, ignore_errors=True)\n    with tempfile.TemporaryDirectory() as work:\n', 'a_mistake_fails'),
]


class Count:
    """A pytest plugin that counts."""

    def __init__(self):
        self.failed = 0

    def pytest_runtest_logreport(self, report):
        """Called by pytest for each phase of each test."""
        self.failed += report.failed


def without(old, new, tests, words):
    """Run the tests that fit `words` with `old` replaced in the kept cells; return how often it stood there, and the counts."""
    source, found, count = chain.source, [], Count()

    def changed(cell):
        text = source(cell)
        if "keep" in cell["metadata"].get("tags", []) and old in text:
            found.append(cell["id"])
        return text.replace(old, new) if found and found[-1] == cell["id"] else text

    chain.source = changed
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            pytest.main(["-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:warnings", "-c", str(chain.ROOT / "pyproject.toml"),
                         "--rootdir", str(chain.ROOT), str(chain.ROOT / "tests" / tests), "-k", words], plugins=[count])
    finally:
        chain.source = source
    return len(found), count.failed


def without_in_tool(file, old, new, tests, words):
    """The same for a guard of tools/FILE, with a copy of the repository and a Python of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("tools", "tests", "notebooks", "data/results"):
            shutil.copytree(chain.ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        for part in ("pyproject.toml", "requirements.txt", "README.md"):
            shutil.copy(chain.ROOT / part, folder)
        path = Path(folder, "tools", file)
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(old, new), encoding="utf-8")
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", f"tests/{tests}", "-k", words],
                              cwd=folder, capture_output=True, text=True)
    failed = re.search(r"(\d+) failed", done.stdout)
    return text.count(old), int(failed[1]) if failed else int(done.returncode == 2)  # 2: a Ctrl-C that nobody took


def main(words):
    """Print a row for each guard; return how many are unproved."""
    unproved = 0
    for take_out, tests, guards in ((without, "test_fault_data.py", DATA), (without, "test_learning.py", LEARNING),
                                    (without_in_tool, "test_tools.py", TOOLS), (without_in_tool, "test_site.py", SITE)):
        if take_out is without_in_tool and not words:  # a control: in an untouched copy the same tests must pass
            _, failed = take_out(guards[0][1], "", "", tests, " or ".join({guard[-1] for guard in guards}))
            unproved += failed
            print(f"control   the tests of {tests} with every guard in place: {failed} rows fail", flush=True)
        for name, *place, which in guards:
            if words and not any(word in name for word in words):
                continue
            found, failed = take_out(*place, tests, which)
            unproved += not (found and failed)
            print(f"{'proved  ' if found and failed else 'UNPROVED'}  {name}: {failed} rows fail without it"
                  + ("" if found else "; its code was not found"), flush=True)
    return unproved


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
