//! Models that are loaded into this process.

use std::{path::Path, sync::Arc};

use carpool_crds::{Device, Model};
use carpool_protocol::{InferRequest, Tensor};
use carpool_worker::{
    assemble::Assembler,
    backend::TorchScript,
    executor::Executor,
    fatal::Fatal,
    item::{Item, Slice},
    probe,
    warmup::warm_up,
};

use super::declared;

/// A model that is loaded, and what stands before and behind it.
pub struct Loaded {
    pub assembler: Assembler,
    pub executor: Executor,
    pub model: Model,
    pub folder: tempfile::TempDir,
}

/// Loads what `write` writes as what `yaml` declares.
pub fn load(yaml: &str, write: impl FnOnce(&Path)) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let model = declared(yaml);
    let assembler = Assembler::load("m", "r", &model, folder.path()).unwrap();
    let backend = torch_script(&folder, &model).unwrap();
    let executor = Executor::new(Box::new(backend), model.clone(), 1);
    Loaded {
        assembler,
        executor,
        model,
        folder,
    }
}

pub fn torch_script(folder: &tempfile::TempDir, model: &Model) -> Result<TorchScript, Fatal> {
    TorchScript::load(&folder.path().join("model.pt"), model, Device::Cpu)
}

pub fn mlp(folder: &Path) {
    super::write_mlp(folder, 0);
}

impl Loaded {
    pub fn item(&self, request: &InferRequest) -> Arc<Item> {
        Arc::new(self.assembler.item(request.encode()).unwrap())
    }

    pub fn run(&mut self, items: &[Arc<Item>]) -> Vec<Result<Vec<Tensor>, carpool_queue::Failure>> {
        let slices: Vec<Slice> = items.iter().cloned().map(Slice::whole).collect();
        self.executor.run(&slices).unwrap()
    }

    pub fn alone(&mut self, item: &Arc<Item>) -> Vec<Tensor> {
        self.run(&[Arc::clone(item)]).remove(0).unwrap()
    }

    pub fn warm_up(&mut self, max_batch_size: usize) -> Result<(), Fatal> {
        let examples = probe::examples(&self.assembler, &self.model, self.folder.path())?;
        warm_up(
            &mut self.executor,
            &self.assembler,
            &self.model,
            &examples,
            max_batch_size,
        )
    }
}
