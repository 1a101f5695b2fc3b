//! The kinds of files that can't be read as what they should be, and the advice on each.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use rawzip::{CompressionMethod, RECOMMENDED_BUFFER_SIZE, ZipArchive, ZipArchiveEntryWayfinder};

/// The advice on how to save TorchScript.
const SAVE: &str = "save it as TorchScript: torch.jit.trace(model, example).save(\"model.pt\")";
/// The number of bytes of a file that tell its kind.
const HEAD: u64 = 4096;

/// Tells why libtorch doesn't load a file, where that can be seen from its content.
pub fn why_not_torch_script(file: &Path) -> Option<String> {
    let head = head(file)?;
    if let Some(message) = not_the_file(&head) {
        return Some(message);
    }
    if head.starts_with(b"PK\x03\x04") {
        return archive(file);
    }
    // The format before PyTorch 1.6: a pickle of this number, then others.
    if head.starts_with(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.") {
        return Some(format!(
            "it was written by torch.save, not as TorchScript; load it in Python and {SAVE}"
        ));
    }
    // A pickle of any protocol since 2 begins so.
    if matches!(head[..], [0x80, 2..=5, ..]) {
        return Some(format!(
            "it is a Python pickle, not TorchScript; load it in Python and {SAVE}"
        ));
    }
    // The head of safetensors: eight bytes of length, then a JSON object.
    if head.get(8..10) == Some(b"{\"") {
        return Some(format!(
            "it is safetensors: weights without the model's code; load them into the model in Python and {SAVE}"
        ));
    }
    None
}

/// Tells why a file holds no JSON, where that can be seen from its content.
pub fn why_not_json(file: &Path) -> Option<String> {
    not_the_file(&head(file)?)
}

fn head(file: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    File::open(file)
        .ok()?
        .take(HEAD)
        .read_to_end(&mut head)
        .ok()?;
    Some(head)
}

/// Tells of a stand-in for a file that was never brought.
fn not_the_file(head: &[u8]) -> Option<String> {
    if head.is_empty() {
        return Some("the file is empty: copy it again".to_owned());
    }
    if head.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Some(
            "it is a Git LFS pointer, not the file that it stands for: run `git lfs pull` and copy the file again"
                .to_owned(),
        );
    }
    let text = String::from_utf8_lossy(head)
        .trim_start()
        .to_ascii_lowercase();
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        return Some(
            "it is an HTML page, such as a server gives in place of a file (a login, an error): download it again"
                .to_owned(),
        );
    }
    None
}

/// Tells why libtorch doesn't load a zip archive.
fn archive(file: &Path) -> Option<String> {
    let file = File::open(file).ok()?;
    let archive = match Archive::open(file) {
        Ok(archive) => archive,
        Err(error) => {
            return Some(format!(
                "it is a zip archive, as TorchScript is, but damaged or not whole ({error}): copy it again"
            ));
        }
    };
    if archive.holds("code/") {
        // The archive is TorchScript: libtorch knows best what is wrong with it, unless bytes have changed.
        return archive.damage().map(|(name, error)| {
            format!("it is TorchScript, but damaged at {name} ({error}): copy it again")
        });
    }
    if [
        "models/",
        "data/aotinductor/",
        "serialized_exported_program",
        "archive_format",
    ]
    .iter()
    .any(|part| archive.holds(part))
    {
        return Some(format!(
            "it is a .pt2 package, of torch.export or AOTInductor, which is not built yet; {SAVE}"
        ));
    }
    if !archive.holds("data.pkl") {
        return Some(format!(
            "it is a zip archive, but not one of TorchScript; {SAVE}"
        ));
    }
    Some(
        match archive.begin("data.pkl").and_then(|head| pickled(&head)) {
            Some(Pickled::Dict) => format!(
                "it is a dict written by torch.save, such as a state_dict: weights without the model's code; load them into \
            the model in Python and {SAVE}"
            ),
            Some(Pickled::Object(class)) => format!(
                "it is an object of the Python class {class} written by torch.save, whose code is not in it; load it in \
            Python and {SAVE}"
            ),
            None => format!(
                "it was written by torch.save, not as TorchScript; load it in Python and {SAVE}"
            ),
        },
    )
}

/// A zip archive as torch writes them: all parts in one folder of any name, none compressed.
struct Archive {
    zip: ZipArchive<rawzip::FileReader>,
    /// The name of each part within the folder, how it is compressed, and where it is.
    parts: Vec<(String, CompressionMethod, ZipArchiveEntryWayfinder)>,
}

impl Archive {
    fn open(file: File) -> Result<Self, rawzip::Error> {
        let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
        let zip = ZipArchive::from_file(file, &mut buffer)?;
        let mut parts = Vec::new();
        let mut entries = zip.entries(&mut buffer);
        while let Some(entry) = entries.next_entry()? {
            let path = String::from_utf8_lossy(entry.file_path().as_bytes()).into_owned();
            let name = path.split_once('/').map_or(&*path, |(_, name)| name);
            parts.push((
                name.to_owned(),
                entry.compression_method(),
                entry.wayfinder(),
            ));
        }
        Ok(Self { zip, parts })
    }

    /// Whether there is a part whose name begins so.
    fn holds(&self, begin: &str) -> bool {
        self.parts.iter().any(|(name, ..)| name.starts_with(begin))
    }

    /// The first bytes of a part.
    fn begin(&self, part: &str) -> Option<Vec<u8>> {
        let (.., entry) = self.parts.iter().find(|(name, ..)| name == part)?;
        let mut begin = Vec::new();
        let entry = self.zip.get_entry(*entry).ok()?;
        entry.reader().take(HEAD).read_to_end(&mut begin).ok()?;
        Some(begin)
    }

    /// The first part that isn't what was written, and why not.
    fn damage(&self) -> Option<(&str, String)> {
        let stored = self
            .parts
            .iter()
            .filter(|(_, method, _)| *method == CompressionMethod::STORE);
        stored
            .map(|(name, _, entry)| (name.as_str(), self.verify(*entry)))
            .find_map(|(name, verified)| Some((name, verified.err()?.to_string())))
    }

    fn verify(&self, entry: ZipArchiveEntryWayfinder) -> io::Result<u64> {
        let entry = self.zip.get_entry(entry).map_err(io::Error::other)?;
        io::copy(&mut entry.verifying_reader(entry.reader()), &mut io::sink())
    }
}

/// The kinds of values that `torch.save` is given.
enum Pickled {
    Dict,
    Object(String),
}

/// Tells what a pickle of `torch.save` holds, in the protocol that it uses unless told otherwise.
fn pickled(head: &[u8]) -> Option<Pickled> {
    let rest = head.strip_prefix(b"\x80\x02")?;
    // The pickle begins with EMPTY_DICT, or with GLOBAL: a module's and a class's name, a line each.
    if rest.starts_with(b"}") {
        return Some(Pickled::Dict);
    }
    let mut lines = rest.strip_prefix(b"c")?.split(|byte| *byte == b'\n');
    let (module, class) = (lines.next()?, lines.next()?);
    if (module, class) == (b"collections", b"OrderedDict") {
        return Some(Pickled::Dict);
    }
    let name = |bytes| {
        std::str::from_utf8(bytes)
            .ok()
            .filter(|name| name.len() < 256)
    };
    Some(Pickled::Object(format!(
        "{}.{}",
        name(module)?,
        name(class)?
    )))
}
