from __future__ import annotations

import slipstream


def test_the_folder_is_written_and_its_files_are_named(cli, tmp_path):
    done = cli("export", "custom-generate", str(tmp_path / "fast"))
    assert done.exit_code == 0
    files = [tmp_path / "fast" / "custom_generate" / name for name in ("generate.py", "requirements.txt")]
    assert done.stdout.split() == [str(file) for file in files]
    assert "def generate(model, **kwargs)" in files[0].read_text()
    assert files[1].read_text() == f"slipstream-llm>={slipstream.__version__}\n"


def test_a_file_of_the_users_is_not_overwritten(cli, tmp_path):
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text("mine")
    done = cli("export", "custom-generate", str(tmp_path))
    assert done.exit_code == 2
    assert "holds something else" in done.stderr
    assert not (tmp_path / "custom_generate" / "requirements.txt").exists()
