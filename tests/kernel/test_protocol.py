"""The Jupyter project's own kernel tests, all that apply.

Run with `python -m unittest discover tests/kernel`, with the kernel installed under the name in CLOZE_KERNEL_NAME
(default: cloze). Needs jupyter_kernel_test.
"""
import os

import jupyter_kernel_test
from jupyter_kernel_test import IopubWelcomeTests, KernelTests

KERNEL = os.environ.get("CLOZE_KERNEL_NAME", "cloze")
# The first `let` waits for rust-analyzer to load the standard library; CI has two slow cores.
jupyter_kernel_test.TIMEOUT = 120


def block(mime, content):
    """Returns a cell that displays something, as the library does."""
    return f'println!("EVCXR_BEGIN_CONTENT {mime}\\n{content}\\nEVCXR_END_CONTENT");'


class ProtocolTests(KernelTests):
    kernel_name = KERNEL
    language_name = "rust"
    file_extension = ".rs"
    code_hello_world = 'println!("hello, world");'
    code_stderr = 'eprintln!("to stderr");'
    completion_samples = [{"text": "std::collections::hash_ma", "matches": {"hash_map::"}}]
    complete_code_samples = ["1 + 1", "let x = 5;", "fn f() -> char { '}' }", 'println!("{{");']
    incomplete_code_samples = ["fn f() {", "let x =", 'let s = "abc', "/* comment"]
    invalid_code_samples = ["}", "let x = (1];"]
    code_generate_error = 'panic!("on purpose");'
    code_execute_result = [
        {"code": "6 * 7", "result": "42"},
        {"code": '"a".repeat(3)', "result": '"aaa"'},
        {"code": "(1, 'b')", "result": "(1, 'b')"},
    ]
    code_display_data = [
        {"code": block("text/html", "<b>bold</b>"), "mime": "text/html"},
        {"code": block("image/svg+xml", "<svg/>"), "mime": "image/svg+xml"},
        {"code": block("image/png", "iVBORw0KGgo="), "mime": "image/png"},
        {"code": block("application/json", '{{\\"a\\": [1]}}'), "mime": "application/json"},
    ]
    code_history_pattern = "6*7"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "std::mem::swap"
    code_clear_output = block("application/x-cloze-clear-output", "")

    def execute_helper(self, code, timeout=jupyter_kernel_test.TIMEOUT, **options):
        return super().execute_helper(code, timeout=timeout, **options)


class WelcomeTests(IopubWelcomeTests):
    kernel_name = KERNEL
    support_iopub_welcome = True


del KernelTests, IopubWelcomeTests
