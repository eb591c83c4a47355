//! The model that a plan speaks of where scales of channels stand in constants.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{PipelineError, Source};
use crate::quant::{Reparameterized, reparameterize};

impl Source {
    /// The same source with the channels of these sites divided, and what reads them multiplied; as it is when that was done already.
    ///
    /// # Errors
    /// When a site is not the output of a LayerNorm that nothing but Linears read, or has not as many channels.
    pub fn reparameterized(&self, by: &[Reparameterized]) -> Result<Cow<'_, Source>, PipelineError> {
        if self.reparameterized == by {
            return Ok(Cow::Borrowed(self));
        }
        let refused = |what: String| PipelineError::Input { path: self.path.clone(), what };
        if !self.reparameterized.is_empty() {
            return Err(refused("its channels are scaled for another plan already".to_owned()));
        }
        let graph = &self.model.graph;
        let mut changed = BTreeMap::new();
        for Reparameterized { site, factors } in by {
            let norm = self.vit.norms.get(site).ok_or_else(|| {
                refused(format!(
                    "the plan scales the channels of {site}, which is not the output of a LayerNorm that nothing but Linears read: make the plan again"
                ))
            })?;
            let constants = reparameterize::constants(norm, factors, |name| graph.constant(graph.value(name)?));
            let constants = constants.map_err(|what| refused(format!("the plan scales the channels of {site}: {what}")))?;
            if constants.keys().any(|name| changed.contains_key(name)) {
                return Err(refused(format!("the plan scales the channels of {site} twice: keep one of them")));
            }
            changed.extend(constants);
        }
        let mut source = self.with_constants(changed)?;
        source.reparameterized = by.to_vec();
        Ok(Cow::Owned(source))
    }
}
