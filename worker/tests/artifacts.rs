//! The files that Python saves and that are no TorchScript, and the refusal of each.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers belong to the tests"
)]

use std::{path::Path, process::Command};

use carpool_crds::Device;
use carpool_worker::{
    assemble::Assembler,
    backend::TorchScript,
    fatal::{Fatal, TerminationReason},
};
use common::{MLP, TEXT, declared};

mod common;

/// The script with which torch of this very version writes each file.
const SAVE: &str = r#"
import pickle, sys, torch
from torch import nn
folder = sys.argv[1] + "/"
module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
example = torch.zeros(1, 4)
torch.save(module.state_dict(), folder + "state_dict")
torch.save({"model": module.state_dict(), "epoch": 3}, folder + "checkpoint")
torch.save(module, folder + "module")
torch.save(module.state_dict(), folder + "protocol_4", pickle_protocol=4)
torch.save(module.state_dict(), folder + "before_1_6", _use_new_zipfile_serialization=False)
with open(folder + "pickle", "wb") as file:
    pickle.dump([1, 2], file)
torch.export.save(torch.export.export(module, (example,)), folder + "exported.pt2")
torch.jit.trace(module, example).save(folder + "torch_script")
"#;

fn load(file: &Path) -> Result<(), Fatal> {
    TorchScript::load(file, &declared(MLP), Device::Cpu).map(drop)
}

fn refusal(file: &Path) -> String {
    let fatal = load(file).unwrap_err();
    assert_eq!(fatal.reason, TerminationReason::ModelInvalid);
    fatal.message
}

#[test]
fn what_is_no_torch_script_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let saved = Command::new(carpool_testkit::python())
        .args(["-c", SAVE])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(
        saved.status.success(),
        "{}",
        String::from_utf8_lossy(&saved.stderr)
    );
    let path = |name: &str| folder.path().join(name);
    load(&path("torch_script")).unwrap();

    let whole = std::fs::read(path("torch_script")).unwrap();
    std::fs::write(path("truncated"), &whole[..whole.len() / 2]).unwrap();
    // The name of an attribute is changed in a part that isn't compressed.
    let mut changed = whole.clone();
    let name = b"training";
    let at = whole.windows(name.len()).position(|window| window == name);
    changed[at.unwrap()] = b'!';
    std::fs::write(path("changed"), changed).unwrap();

    let save = "save it as TorchScript: torch.jit.trace(model, example).save(\"model.pt\")";
    for (name, says, how) in [
        (
            "state_dict",
            "a dict written by torch.save, such as a state_dict",
            save,
        ),
        (
            "checkpoint",
            "a dict written by torch.save, such as a state_dict",
            save,
        ),
        (
            "module",
            "an object of the Python class torch.nn.modules.container.Sequential",
            save,
        ),
        ("protocol_4", "it was written by torch.save", save),
        ("before_1_6", "it was written by torch.save", save),
        ("pickle", "it is a Python pickle", save),
        (
            "exported.pt2",
            "a .pt2 package, of torch.export or AOTInductor",
            save,
        ),
        (
            "truncated",
            "a zip archive, as TorchScript is, but damaged or not whole",
            "copy it again",
        ),
        (
            "changed",
            "it is TorchScript, but damaged at data.pkl",
            "copy it again",
        ),
    ] {
        let message = refusal(&path(name));
        assert!(
            message.contains(says) && message.contains(how),
            "{name}: {message}"
        );
        assert!(message.contains(path(name).to_str().unwrap()), "{message}");
    }
}

/// The stand-ins for a file that was never brought.
const NEVER_BROUGHT: [(&str, &str); 4] = [
    ("", "empty"),
    (
        "version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8\nsize 12345\n",
        "a Git LFS pointer",
    ),
    (
        "<!DOCTYPE html>\n<html><title>Sign in</title></html>\n",
        "an HTML page",
    ),
    ("\n<html><body>404</body></html>\n", "an HTML page"),
];

#[test]
fn what_was_never_brought_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (model, tokenizer) = (
        folder.path().join("model.pt"),
        folder.path().join("tokenizer.json"),
    );
    for (content, says) in NEVER_BROUGHT {
        std::fs::write(&model, content).unwrap();
        let message = refusal(&model);
        assert!(message.contains(says), "{message}");

        std::fs::write(&tokenizer, content).unwrap();
        let loaded = Assembler::load("m", "r", &declared(TEXT), folder.path());
        let fatal = loaded.err().unwrap();
        assert_eq!(fatal.reason, TerminationReason::ModelInvalid);
        assert!(fatal.message.contains("tokenizer.json"), "{fatal}");
        assert!(fatal.message.contains(says), "{fatal}");
    }
}
