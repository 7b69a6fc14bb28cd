//! Keys and labels of a node, which may change while it runs.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use memberlist_protocol::{
    config::ConfigError,
    keyring::{Key, KeyError, KeyId, Keys, Sealing},
    member::NodeId,
    wire::{
        guard::Labels,
        order::{Order, Standing},
    },
};

use crate::{
    Cluster,
    rollout::{self, Rollout},
};

/// The keys of a node: the primary one, which it seals with, and others that it still opens with. A clone is the
/// same ring, and so is what [`Cluster::keyring`](crate::Cluster::keyring) gives: what is changed in one is
/// changed for all nodes that were given it.
///
/// ```
/// # use actix_memberlist::{Key, KeyError, Keyring};
/// let old = Key::from_hex("000102030405060708090a0b0c0d0e0f")?;
/// let new = Key::from_hex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")?;
/// let ring = Keyring::new(old.clone());
/// ring.install(new.clone())?;
/// ring.use_key(&new)?;
/// ring.remove(&old)?;
/// assert_eq!(ring.list(), [new]);
/// # Ok::<(), KeyError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Keyring(Arc<Ring>);

#[derive(Debug)]
struct Ring {
    keys: Mutex<Keys>,
    /// Those of the keys that came here, or were given out from here, under another one.
    travelled: Mutex<Vec<KeyId>>,
    changes: AtomicU64,
}

impl Keyring {
    /// A ring of one key, which is the primary one.
    pub fn new(primary: Key) -> Self {
        Self(Arc::new(Ring {
            keys: Mutex::new(Keys::new(primary)),
            travelled: Mutex::default(),
            changes: AtomicU64::new(0),
        }))
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Keys) -> Result<(), KeyError>) -> Result<(), KeyError> {
        change(&mut self.keys())?;
        self.0.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Adds a key that came under another one.
    fn learn(&self, k: &Key) -> Result<(), KeyError> {
        let new = self.keys().find(k.id()).is_none();
        self.install(k.clone())?;
        if new {
            self.travelled().push(k.id());
        }
        Ok(())
    }

    fn travelled(&self) -> MutexGuard<'_, Vec<KeyId>> {
        let mut travelled = self.0.travelled.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = self.keys();
        travelled.retain(|id| keys.find(*id).is_some());
        drop(keys);
        travelled
    }

    /// Adds a key to open with. To install one again changes nothing.
    ///
    /// # Errors
    /// [`KeyError::Full`], [`KeyError::SameId`].
    pub fn install(&self, k: Key) -> Result<(), KeyError> {
        self.change(|keys| keys.install(k))
    }

    /// Seals with that key from now on.
    ///
    /// # Errors
    /// [`KeyError::Unknown`] unless it was installed.
    pub fn use_key(&self, k: &Key) -> Result<(), KeyError> {
        self.change(|keys| keys.use_key(k.id()))
    }

    /// Forgets a key: what is sealed with it does not open any more. To remove one that is not there changes
    /// nothing.
    ///
    /// # Errors
    /// [`KeyError::IsPrimary`].
    pub fn remove(&self, k: &Key) -> Result<(), KeyError> {
        self.change(|keys| keys.remove(k.id()))
    }

    /// Takes a running cluster to another key: all open with it too, all seal with it, all forget the others; after
    /// each step all members are asked whether it holds. It stops at the first step that does not hold at all of
    /// them within that time, in all, and may be repeated then; nobody is cut off meanwhile.
    ///
    /// The new key travels under the old one, to those who do not have it, and as long as both open also to
    /// newcomers who come under the old one. If the old one is known to somebody else, give the new one to each
    /// node by hand before, with [`install`](Self::install): a key that was installed by hand on this node never
    /// travels from it, and the change stops at whoever does not have it.
    ///
    /// Until the last step is done, whoever has the old key is still heard.
    ///
    /// Let one change run at a time. Of two with different keys neither may end well, and what one takes away the
    /// other may still need; the first is repeated then, with its key, on the node that it began on.
    ///
    /// # Errors
    /// The step that does not hold everywhere, where it does not, and why. A member that is dead counts too.
    pub async fn rotate_cluster(&self, c: &Cluster, to: Key, within: Duration) -> Result<Rollout, Rollout> {
        c.roll(rollout::to_key(to), within).await
    }

    /// Each key, the primary one first.
    pub fn list(&self) -> Vec<Key> {
        self.keys().list().to_vec()
    }
}

/// What a node lets in and how it speaks, as the handle may change it while the node runs.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) keyring: Option<Keyring>,
    /// Labels that it can change to are at most this long: room is kept for them in each packet.
    pub(crate) max_label: usize,
    now: Mutex<(Labels, Sealing)>,
    changes: AtomicU64,
}

/// What [`Admission`] says at one time.
pub(crate) struct Admitted {
    pub(crate) labels: Labels,
    pub(crate) sealing: Sealing,
    pub(crate) keys: Vec<Key>,
    /// Those of the keys that have travelled under another one.
    pub(crate) travelled: Vec<KeyId>,
}

impl Admission {
    pub(crate) fn new(keyring: Option<Keyring>, labels: Labels, sealing: Sealing, max_label: usize) -> Self {
        Self { keyring, max_label, now: Mutex::new((labels, sealing)), changes: AtomicU64::new(0) }
    }

    /// A number that is another one after each change.
    pub(crate) fn changes(&self) -> u64 {
        let keys = self.keyring.as_ref().map_or(0, |ring| ring.0.changes.load(Ordering::Acquire));
        self.changes.load(Ordering::Acquire) + keys
    }

    pub(crate) fn read(&self) -> Admitted {
        let (labels, sealing) = self.now.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let keys = self.keyring.as_ref().map(Keyring::list).unwrap_or_default();
        let travelled = self.keyring.as_ref().map(|ring| ring.travelled().clone()).unwrap_or_default();
        Admitted { labels, sealing, keys, travelled }
    }

    /// Whether what this node sends is sealed.
    pub(crate) fn seals_out(&self) -> bool {
        let (_, sealing) = &*self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.keyring.is_some() && *sealing >= Sealing::Outgoing
    }

    /// How things stand.
    pub(crate) fn standing(&self, id: NodeId) -> Standing {
        let Admitted { labels, sealing, keys, .. } = self.read();
        let keys = keys.iter().map(Key::id).collect();
        Standing { id, keys, sealing, label: labels.own, hears: labels.accepted, refused: None }
    }

    /// Does what an order says.
    ///
    /// # Errors
    /// Why not, as a sentence. Nothing has changed then.
    pub(crate) fn follow(&self, order: &Order) -> Result<(), String> {
        let ring = self.keyring.as_ref().ok_or("this node has no key")?;
        match order {
            Order::Tell => return Ok(()),
            Order::Install(key) => return ring.learn(key).map_err(|error| error.to_string()),
            Order::Use(id) => {
                return ring.change(|keys| keys.use_key(*id)).map_err(|error| error.to_string());
            }
            Order::Keep(id) => {
                let keep = |keys: &mut Keys| match keys.primary().id() == *id {
                    true => {
                        let others: Vec<_> = keys.list()[1..].iter().map(Key::id).collect();
                        others.into_iter().try_for_each(|other| keys.remove(other))
                    }
                    false => Err(KeyError::Unknown),
                };
                return ring.change(keep).map_err(|_| "another key is in use".into());
            }
            Order::Hear(_) | Order::Say(_) | Order::HearOnly(_) | Order::Seal(_) => {}
        }
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut labels, mut sealing) = now.clone();
        match order {
            Order::Hear(label) if labels.own != *label && !labels.accepted.contains(label) => {
                labels.accepted.push(label.clone());
            }
            Order::Say(label) if labels.own != *label => {
                if !labels.accepted.contains(label) {
                    return Err("it does not hear that label yet".into());
                }
                labels.accepted.retain(|accepted| accepted != label);
                labels.accepted.push(std::mem::replace(&mut labels.own, label.clone()));
            }
            Order::HearOnly(label) => {
                if labels.own != *label {
                    return Err("it says another label".into());
                }
                labels.accepted.clear();
            }
            Order::Seal(wanted) => {
                // Nobody is ordered to seal less, and what is repeated has been done.
                sealing = sealing.max(*wanted);
            }
            _ => return Ok(()),
        }
        self.check(&labels).map_err(|error| error.to_string())?;
        *now = (labels, sealing);
        drop(now);
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn check(&self, labels: &Labels) -> Result<(), ConfigError> {
        labels.check()?;
        let (longest, max) = (labels.longest(), self.max_label);
        if longest <= max {
            return Ok(());
        }
        let limit = format!("at most {max} bytes while the node runs: packets have room for no more");
        Err(ConfigError::new("label", format!("{longest} bytes long"), limit))
    }

    /// Says and hears other labels.
    ///
    /// # Errors
    /// [`ConfigError`] names the value and the limit.
    pub(crate) fn set_labels(&self, labels: Labels) -> Result<(), ConfigError> {
        self.check(&labels)?;
        self.change(|now, _| *now = labels);
        Ok(())
    }

    /// Seals more or less than before.
    pub(crate) fn set_sealing(&self, sealing: Sealing) {
        self.change(|_, now| *now = sealing);
    }

    fn change(&self, change: impl FnOnce(&mut Labels, &mut Sealing)) {
        let (labels, sealing) = &mut *self.now.lock().unwrap_or_else(PoisonError::into_inner);
        change(labels, sealing);
        self.changes.fetch_add(1, Ordering::Release);
    }
}
