//! Changed weights and biases as a file beside the plan that they belong to.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use ndarray::{ArrayViewD, IxDyn};
use sha2::{Digest as _, Sha256};

use super::{PipelineError, Source};
use crate::calib::Digest;
use crate::data::{read_arrays, save_npz};
use crate::ir::Tensor;
use crate::quant::plan::ConstantsFile;
use crate::quant::{PlanError, QuantPlan};

/// Where the constants of a plan are written: `model.plan.constants.npz` for `model.plan.json`.
pub fn constants_path(plan: &Path) -> PathBuf {
    plan.with_extension("constants.npz")
}

/// Writes float32 constants by name, an `.npz`, and says what a plan has to hold to find them again. Equal constants give equal
/// bytes.
///
/// # Errors
/// When the file cannot be written, or a constant is not one of numbers.
pub fn write_constants(constants: &BTreeMap<String, Tensor>, path: &Path) -> Result<ConstantsFile, PipelineError> {
    let failed = |what: String| refused(path, what);
    let data: Vec<(&str, &[usize], Vec<f32>)> = constants
        .iter()
        .map(|(name, t)| Ok((name.as_str(), t.shape.as_slice(), t.to_f32().map_err(|e| failed(e.to_string()))?)))
        .collect::<Result<_, PipelineError>>()?;
    let arrays: Vec<(&str, ArrayViewD<'_, f32>)> = data
        .iter()
        .map(|(name, shape, x)| Ok((*name, ArrayViewD::from_shape(IxDyn(shape), x).map_err(|e| failed(e.to_string()))?)))
        .collect::<Result<_, PipelineError>>()?;
    save_npz(path, &arrays)?;
    let file = path.file_name().and_then(OsStr::to_str).ok_or_else(|| failed("its name is not text".to_owned()))?;
    Ok(ConstantsFile { file: file.to_owned(), sha256: digest(path)? })
}

/// The model with a plan's constants: those around scaled channels, and those read from the plan's folder, if it has any.
///
/// # Errors
/// When the file is missing, is not the one that was written with the plan, or does not fit the model.
pub fn with_plan_constants(source: Source, plan: &QuantPlan, plan_path: &Path) -> Result<Source, PipelineError> {
    plan.check_model(&source.digest().to_string())?;
    let source = source.reparameterized(&plan.reparameterized)?.into_owned();
    let Some(ConstantsFile { file, sha256 }) = &plan.constants else { return Ok(source) };
    let path = plan_path.with_file_name(file);
    if Path::new(file).file_name() != Some(OsStr::new(file)) {
        return Err(refused(Path::new(file), "the plan must name a file in its own folder".to_owned()));
    }
    if digest(&path)? != *sha256 {
        return Err(refused(&path, "it is not the file that was written with the plan: their digests differ".to_owned()));
    }
    let mut constants = BTreeMap::new();
    for array in read_arrays(&path)? {
        let name = array.name.unwrap_or_default();
        let graph = &source.model.graph;
        let old = graph.value(&name).and_then(|v| graph.constant(v));
        if old.is_none_or(|t| t.shape != array.array.shape()) {
            let what = format!("the model has no constant '{name}' of shape {:?}", array.array.shape());
            return Err(refused(&path, what));
        }
        let data: Vec<f32> = array.array.iter().copied().collect();
        let tensor = Tensor::new(array.array.shape(), &data).map_err(|e| refused(&path, e.to_string()))?;
        constants.insert(name, tensor);
    }
    source.with_constants(constants)
}

fn refused(path: &Path, what: String) -> PipelineError {
    PlanError::Constants { place: path.display().to_string(), what }.into()
}

fn digest(path: &Path) -> Result<String, PipelineError> {
    let bytes = std::fs::read(path).map_err(|e| refused(path, e.to_string()))?;
    Ok(Digest(Sha256::digest(&bytes).into()).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::quant::Target;

    fn plan(source: &Source, constants: Option<ConstantsFile>) -> QuantPlan {
        let (model, config) = (source.digest().to_string(), "test".to_owned());
        QuantPlan {
            version: 1,
            model,
            target: Target::Integer,
            config,
            constants,
            reparameterized: vec![],
            sites: vec![],
            float: vec![],
        }
    }

    fn fixture() -> Source {
        super::super::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit.onnx")).unwrap()
    }

    /// Every weight of the fixture plus one.
    fn changed(source: &Source) -> BTreeMap<String, Tensor> {
        let facts = source.facts();
        let plus = |t: &Tensor| Tensor::new(&t.shape, &t.to_f32().unwrap().iter().map(|x| x + 1.0).collect::<Vec<_>>()).unwrap();
        facts.constants.iter().map(|(name, t)| (name.clone(), plus(t))).collect()
    }

    #[test]
    fn a_plan_finds_its_constants_again() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("m.plan.json");
        let path = constants_path(&at);
        assert_eq!(path, folder.path().join("m.plan.constants.npz"));
        let source = fixture();
        let constants = changed(&source);
        assert!(constants.len() > 4);
        let file = write_constants(&constants, &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(write_constants(&constants, &path).unwrap(), file);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "the same bytes");
        let text = plan(&source, Some(file)).to_text();
        let plan = QuantPlan::from_text(&text, "m.plan.json").unwrap();
        let source = with_plan_constants(source, &plan, &at).unwrap();
        assert_eq!(source.facts().constants, constants);
        assert_eq!(source.digest().to_string(), plan.model, "still the plan's model");
    }

    #[test]
    fn other_constants_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("m.plan.json");
        let path = constants_path(&at);
        let mut constants = changed(&fixture());
        let file = write_constants(&constants, &path).unwrap();
        let refused = |file: &ConstantsFile| {
            let source = fixture();
            let plan = plan(&source, Some(file.clone()));
            with_plan_constants(source, &plan, &at).expect_err("refused").to_string()
        };
        let elsewhere = ConstantsFile { file: "../m.plan.constants.npz".to_owned(), ..file.clone() };
        assert!(refused(&elsewhere).contains("in its own folder"), "{}", refused(&elsewhere));
        let name = constants.keys().next().unwrap().clone();
        constants.insert(name.clone(), Tensor::vector(&[1.0f32]));
        let misfit = write_constants(&constants, &path).unwrap();
        assert!(refused(&file).contains("digests differ"), "{}", refused(&file));
        assert!(refused(&misfit).contains(&format!("no constant '{name}' of shape [1]")), "{}", refused(&misfit));
        std::fs::remove_file(&path).unwrap();
        assert!(refused(&file).contains("m.plan.constants.npz cannot be used: No such file"), "{}", refused(&file));
    }
}
