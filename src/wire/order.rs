//! Orders about keys, labels and seals, which one node gives to the others of its cluster, and what they answer.
//! They go over sealed streams alone.
//!
//! ```text
//! there:  length (order)     back:  length (standing)
//! ```

use crate::{
    keyring::{Key, KeyId, Sealing},
    member::NodeId,
};

/// Most bytes of an order.
pub const MAX_ORDER: usize = 2048;

/// Most bytes of a standing: sixteen keys and seventeen labels.
pub const MAX_STANDING: usize = 8192;

/// What a node is to do, in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Say how things stand.
    Tell,
    /// Open with this key too.
    Install(Key),
    /// Seal with the key of that id.
    Use(KeyId),
    /// Forget all keys but that, which is in use.
    Keep(KeyId),
    /// Hear this label too.
    Hear(String),
    /// Say this label.
    Say(String),
    /// Hear no label but this, which is said.
    HearOnly(String),
    /// Seal, or take in nothing else. Nobody is ordered to seal less than before.
    Seal(Sealing),
}

/// An order, from whom, for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// Who orders it.
    pub from: NodeId,
    /// Who is meant.
    pub to: NodeId,
    /// What.
    pub order: Order,
}

/// How things stand at a node once it has carried out an order, or has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Who says so.
    pub id: NodeId,
    /// Its keys, the one that it seals with first.
    pub keys: Vec<KeyId>,
    /// What it does with them.
    pub sealing: Sealing,
    /// The label that it says.
    pub label: String,
    /// Others that it hears.
    pub hears: Vec<String>,
    /// Why the order was not carried out, if it was not.
    pub refused: Option<String>,
}

impl Standing {
    /// Whether things stand as the order wants them.
    pub fn follows(&self, order: &Order) -> bool {
        match order {
            Order::Tell => true,
            Order::Install(key) => self.keys.contains(&key.id()),
            Order::Use(id) => self.keys.first() == Some(id),
            Order::Keep(id) => self.keys == [*id],
            Order::Hear(label) => self.label == *label || self.hears.contains(label),
            Order::Say(label) => self.label == *label,
            Order::HearOnly(label) => self.label == *label && self.hears.is_empty(),
            Order::Seal(sealing) => self.sealing >= *sealing,
        }
    }
}
