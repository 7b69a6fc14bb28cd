//! A node's full state, as it is exchanged over a stream, and the refusal of one.
//!
//! The members of a received state stay bytes until each is looked at: a state of 20 MiB costs 20 MiB.

use bytes::Bytes;

use super::{WireError, codec, message::Remembered};
use crate::member::{NodeId, Versions};

/// The head of a full state.
#[derive(Clone, Debug, PartialEq)]
pub struct StateHeader {
    /// Whose state it is.
    pub from: NodeId,
    /// What that node speaks.
    pub versions: Versions,
    /// Whether the exchange is a join.
    pub join: bool,
    /// Whether the joiner has a last word: its application may still say no.
    pub tentative: bool,
    /// Members that follow.
    pub members: u32,
    /// Bytes of the user's state that follow these.
    pub user_len: u32,
}

/// Why a node does not talk to another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The labels differ.
    #[error("it belongs to a cluster with another label")]
    Label,
    /// The wires differ.
    #[error("it speaks another wire")]
    Wire,
    /// Neither speaks what the other one understands.
    #[error("it does not understand this node's protocol version")]
    Version,
    /// The keys differ.
    #[error("the two nodes have different keys, or only one of them has any")]
    Key,
    /// Another node of that name is there, at another address.
    #[error("another member of that name is alive at another address")]
    NameTaken,
    /// The node was removed from the cluster.
    #[error("this node was removed from the cluster")]
    Removed,
    /// One node's address is outside the networks that the other one allows.
    #[error("one of the two addresses is outside the networks that the other node allows")]
    Address,
    /// Another node is there, or another run of it.
    #[error("another node is there, or another run of it")]
    NotMe,
    /// A later connection of the link is there already, or what the dialler says of the link cannot be.
    #[error("a later connection has taken its place")]
    Overtaken,
    /// The dialler is no member there, as far as it has heard.
    #[error("this node is no member there")]
    Stranger,
    /// It has no room for another one just now.
    #[error("it has no room for another one")]
    Crowded,
    /// The application said no.
    #[error("vetoed: {0}")]
    Vetoed(String),
}

impl Refusal {
    /// The code of those that need no text.
    pub fn code(&self) -> u8 {
        self.to_wire().0
    }

    /// What a code stands for.
    pub fn of_code(code: u8) -> Self {
        Self::from_wire(code, "")
    }

    pub(super) fn to_wire(&self) -> (u8, &str) {
        match self {
            Self::Label => (0, ""),
            Self::Wire => (1, ""),
            Self::Version => (2, ""),
            Self::Key => (3, ""),
            Self::NameTaken => (4, ""),
            Self::Removed => (5, ""),
            Self::Vetoed(text) => (6, text),
            Self::Address => (7, ""),
            Self::NotMe => (8, ""),
            Self::Overtaken => (9, ""),
            Self::Crowded => (10, ""),
            Self::Stranger => (11, ""),
        }
    }

    /// A refusal that a later version may add keeps its number as a text.
    pub(super) fn from_wire(code: u8, text: &str) -> Self {
        match code {
            0 => Self::Label,
            1 => Self::Wire,
            2 => Self::Version,
            3 => Self::Key,
            4 => Self::NameTaken,
            5 => Self::Removed,
            6 => Self::Vetoed(text.chars().filter(|c| !c.is_control()).take(200).collect()),
            7 => Self::Address,
            8 => Self::NotMe,
            9 => Self::Overtaken,
            10 => Self::Crowded,
            11 => Self::Stranger,
            _ => Self::Vetoed(format!("refusal {code}")),
        }
    }
}

/// A node's own state, without what its user adds.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnBytes {
    /// The head.
    pub header: StateHeader,
    /// The members, this node first.
    pub members: Bytes,
}

/// A full state that has been checked: each of its members can be read.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The head.
    pub header: StateHeader,
    /// The user's state.
    pub user: Bytes,
    members: Bytes,
    /// Its first members that go by the reader's own name.
    namesakes: Vec<Remembered>,
}

/// Namesakes of the reader that a state keeps apart. An honest one has one at most.
const NAMESAKES: usize = 4;

/// A state whose members are being checked: a large one takes many turns.
#[derive(Debug)]
pub struct Unchecked {
    state: State,
    at: usize,
    left: u32,
}

impl Unchecked {
    /// Checks up to `n` more members for a reader called `own`. Gives the state once all have been checked.
    ///
    /// # Errors
    /// Why these bytes are no state.
    pub fn check(mut self, n: usize, own: &str) -> Result<Result<State, Self>, WireError> {
        for _ in 0..n {
            if self.left == 0 {
                break;
            }
            let (member, used) = codec::decode_remembered(&self.state.members[self.at..])?;
            self.at += used;
            self.left -= 1;
            if member.alive.id.name() == own && self.state.namesakes.len() < NAMESAKES {
                self.state.namesakes.push(member);
            }
        }
        match self.left {
            0 if self.at < self.state.members.len() => Err(WireError::Trailing),
            0 => Ok(Ok(self.state)),
            _ => Ok(Err(self)),
        }
    }
}

impl State {
    /// Writes a state: the head, the members with the sender first, the user's bytes. `members` of the head is set here.
    pub fn encode(
        mut header: StateHeader,
        members: impl ExactSizeIterator<Item = Remembered>,
        user: &[u8],
    ) -> Bytes {
        header.members = u32::try_from(members.len()).unwrap_or(u32::MAX);
        header.user_len = u32::try_from(user.len()).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(64 + 48 * members.len() + user.len());
        codec::encode_reply(&Ok(header), &mut out);
        for member in members {
            codec::encode_remembered(&member, &mut out);
        }
        out.extend_from_slice(user);
        out.into()
    }

    /// Writes the head of a state whose members are written already, with the user's bytes to follow these.
    pub fn head(header: &StateHeader, user_len: usize) -> Vec<u8> {
        let user_len = u32::try_from(user_len).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(64);
        codec::encode_reply(&Ok(StateHeader { user_len, ..header.clone() }), &mut out);
        out
    }

    /// Writes a refusal.
    pub fn refuse(refusal: Refusal) -> Bytes {
        let mut out = Vec::new();
        codec::encode_reply(&Err(refusal), &mut out);
        out.into()
    }

    /// Reads and checks a state for a reader called `own`, or the refusal to give one.
    ///
    /// # Errors
    /// Why these bytes are neither.
    pub fn decode(bytes: Bytes, own: &str) -> Result<Result<Self, Refusal>, WireError> {
        match Self::begin(bytes)? {
            Ok(unchecked) => Ok(unchecked.check(usize::MAX, own)?.map_err(|_| Refusal::Wire)),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Reads the head of a state, whose members are then to be checked; or the refusal to give one.
    ///
    /// # Errors
    /// Why these bytes are neither.
    pub fn begin(bytes: Bytes) -> Result<Result<Unchecked, Refusal>, WireError> {
        let (reply, head) = codec::decode_reply(&bytes)?;
        let header = match reply {
            Ok(header) => header,
            Err(_) if head < bytes.len() => return Err(WireError::Trailing),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let user_at = bytes.len().checked_sub(header.user_len as usize).ok_or(WireError::Truncated)?;
        if user_at < head {
            return Err(WireError::Truncated);
        }
        let (members, user) = (bytes.slice(head..user_at), bytes.slice(user_at..));
        let left = header.members;
        Ok(Ok(Unchecked { state: Self { header, user, members, namesakes: Vec::new() }, at: 0, left }))
    }

    /// Its members that go by the name of whoever read it.
    pub fn namesakes(&self) -> &[Remembered] {
        &self.namesakes
    }

    /// The first member: that is the one whose state it is.
    ///
    /// # Errors
    /// [`WireError::Malformed`] if it is another one.
    pub fn sender(&self) -> Result<Remembered, WireError> {
        let (first, _) = codec::decode_remembered(&self.members)?;
        if first.alive.id == self.header.from { Ok(first) } else { Err(WireError::Malformed) }
    }

    /// Bytes of it that have not been taken yet.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// The next member, until all have been taken.
    pub fn next_member(&mut self) -> Option<Remembered> {
        let (member, used) = codec::decode_remembered(&self.members).ok()?;
        let _ = self.members.split_to(used);
        Some(member)
    }

    /// Whether all members have been taken.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        member::{MemberState, PackedTags},
        wire::message::Alive,
    };

    fn header() -> StateHeader {
        StateHeader {
            from: NodeId::new("a", 3),
            versions: Versions::CURRENT,
            join: true,
            tentative: false,
            members: 0,
            user_len: 0,
        }
    }

    fn member(i: usize) -> Remembered {
        let alive = Alive {
            id: NodeId::new(format!("n{i}"), 1),
            incarnation: 1,
            addr: "10.0.0.1:7946".parse().unwrap(),
            tags: PackedTags::default(),
            meta: Bytes::from_static(b"meta"),
            versions: Versions::CURRENT,
        };
        Remembered { alive, state: [MemberState::Alive, MemberState::Left][i % 2] }
    }

    #[test]
    fn a_state_survives_the_wire() {
        let bytes = State::encode(header(), (0..100).map(member), b"user");
        let mut state = State::decode(bytes, "me").unwrap().unwrap();
        assert_eq!((state.header.members, &state.user[..], state.header.join), (100, &b"user"[..], true));
        for i in 0..100 {
            assert_eq!(state.next_member(), Some(member(i)));
        }
        assert!(state.is_empty() && state.next_member().is_none());
    }

    #[test]
    fn a_join_says_whether_the_joiner_has_a_last_word() {
        for (join, tentative) in [(false, false), (true, false), (true, true)] {
            let header = StateHeader { join, tentative, ..header() };
            let read = State::decode(State::head(&header, 0).into(), "me").unwrap().unwrap();
            assert_eq!((read.header.join, read.header.tentative), (join, tentative));
        }
    }

    #[test]
    fn weak_point_30_a_claimed_number_of_members_reserves_nothing() {
        let mut out = Vec::new();
        let lying = StateHeader { members: u32::MAX, ..header() };
        codec::encode_reply(&Ok(lying), &mut out);
        assert!(out.len() < 40);
        let Ok(Ok(begun)) = State::begin(out.clone().into()) else { panic!("it begins well") };
        assert_eq!(begun.state.namesakes.capacity(), 0);
        assert_eq!(State::decode(out.into(), "me"), Err(WireError::Truncated));
    }

    #[test]
    fn of_those_with_the_readers_name_a_few_are_kept_however_many_there_are() {
        let bytes = State::encode(header(), (0..100).map(|_| member(7)), b"");
        let mut state = State::decode(bytes, "n7").unwrap().unwrap();
        assert_eq!(state.namesakes(), vec![member(7); NAMESAKES]);
        assert_eq!(std::iter::from_fn(|| state.next_member()).count(), 100);
    }

    #[test]
    fn a_state_that_is_cut_or_has_more_bytes_than_it_says_is_refused() {
        let bytes = State::encode(header(), (0..3).map(member), b"user");
        for cut in 0..bytes.len() {
            assert!(State::decode(bytes.slice(..cut), "me").is_err(), "{cut}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(State::decode(longer.into(), "me").is_err());
    }

    #[test]
    fn weak_point_17_a_refusal_says_why() {
        for refusal in
            [Refusal::Label, Refusal::NameTaken, Refusal::Version, Refusal::Vetoed("no guests".into())]
        {
            assert_eq!(State::decode(State::refuse(refusal.clone()), "me"), Ok(Err(refusal)));
        }
        let noisy = State::decode(State::refuse(Refusal::Vetoed("a\u{1b}[2Jb".repeat(500))), "me").unwrap();
        assert!(matches!(noisy, Err(Refusal::Vetoed(text)) if text.len() <= 200 && !text.contains('\u{1b}')));
    }
}
