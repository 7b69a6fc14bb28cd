//! What a peer's bytes may make a type do while it is read: nest so deep, and no more elements than they pay for.
//!
//! A type that holds itself (a tree, a list of boxes) is read by a call within a call for each level, and a peer
//! says how many levels there are: 64 KiB of them are more than the stack of a thread has room for, and that ends the
//! process. Elements that take no bytes (`Vec<()>`) are the other thing that a few bytes can claim without end.
//!
//! This stands between a type and the bytes that it is read from, and counts. Whatever holds nothing goes straight on.

use std::{cell::Cell, fmt};

use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

/// Values within each other: as many as `serde_json` takes.
pub(super) const DEEPEST: u8 = 128;

/// Elements for which a list may reserve memory before they have been read. What claims to have more grows as they
/// come: serde takes a claim for up to 1 MiB at its word, and lists within each other do so at each level.
const RESERVED: usize = 64;

/// A `T` that is read within these bounds: lists and maps in it have at most `ELEMENTS` elements together.
pub(super) struct Bounded<T, const ELEMENTS: usize>(pub(super) T);

impl<'de, T: DeserializeOwned, const ELEMENTS: usize> Deserialize<'de> for Bounded<T, ELEMENTS> {
    fn deserialize<D: Deserializer<'de>>(inner: D) -> Result<Self, D::Error> {
        let elements = Cell::new(ELEMENTS);
        T::deserialize(Within { inner, room: Room { levels: DEEPEST, elements: &elements } }).map(Self)
    }
}

/// What is left.
#[derive(Clone, Copy)]
struct Room<'a> {
    levels: u8,
    elements: &'a Cell<usize>,
}

impl Room<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let levels = self.levels.checked_sub(1).ok_or_else(|| E::custom("nested too deep"))?;
        Ok(Self { levels, ..self })
    }

    fn element<E: Error>(self) -> Result<(), E> {
        let left = self.elements.get().checked_sub(1).ok_or_else(|| E::custom("too many elements"))?;
        self.elements.set(left);
        Ok(())
    }
}

/// Something of serde's, within bounds.
struct Within<'a, T> {
    inner: T,
    room: Room<'a>,
}

/// The elements of a list or a map, which are counted, or the fields of what has a fixed number of them.
struct Elements<'a, T> {
    inner: T,
    room: Room<'a>,
    counted: bool,
}

/// What is made of the elements.
struct Visiting<'a, V> {
    visitor: V,
    room: Room<'a>,
    counted: bool,
}

macro_rules! straight_on {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method(visitor)
        })*
    };
}

macro_rules! deeper {
    ($($method:ident($($name:ident: $type:ty),*) $counted:literal)*) => {
        $(fn $method<V: Visitor<'de>>(self, $($name: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            let room = self.room.deeper()?;
            self.inner.$method($($name,)* Visiting { visitor, room, counted: $counted })
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Within<'_, D> {
    type Error = D::Error;

    straight_on! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str
        deserialize_bytes deserialize_unit deserialize_identifier
        deserialize_any deserialize_ignored_any
    }

    // What is lent is copied once by whoever wants its own, straight from what has come.
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_bytes(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    deeper! {
        deserialize_option() false
        deserialize_newtype_struct(name: &'static str) false
        deserialize_seq() true
        deserialize_map() true
        deserialize_tuple(len: usize) false
        deserialize_tuple_struct(name: &'static str, len: usize) false
        deserialize_struct(name: &'static str, fields: &'static [&'static str]) false
        deserialize_enum(name: &'static str, variants: &'static [&'static str]) false
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Visiting<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(Within { inner, room: self.room })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(Within { inner, room: self.room })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(Elements { inner, room: self.room, counted: self.counted })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Elements { inner, room: self.room, counted: self.counted })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(Within { inner, room: self.room })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Within<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Within { inner, room: self.room })
    }
}

impl<T> Elements<'_, T> {
    fn count<E: Error>(&self) -> Result<(), E> {
        if self.counted { self.room.element() } else { Ok(()) }
    }

    fn reserved(&self, hint: Option<usize>) -> Option<usize> {
        if self.counted { hint.map(|claimed| claimed.min(RESERVED)) } else { hint }
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Elements<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.count()?;
        self.inner.next_element_seed(Within { inner: seed, room: self.room })
    }

    fn size_hint(&self) -> Option<usize> {
        self.reserved(self.inner.size_hint())
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Elements<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.count()?;
        self.inner.next_key_seed(Within { inner: seed, room: self.room })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(Within { inner: seed, room: self.room })
    }

    fn size_hint(&self) -> Option<usize> {
        self.reserved(self.inner.size_hint())
    }
}

impl<'de, 'a, A: EnumAccess<'de>> EnumAccess<'de> for Within<'a, A> {
    type Error = A::Error;
    type Variant = Within<'a, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let (value, inner) = self.inner.variant_seed(seed)?;
        Ok((value, Within { inner, room: self.room }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Within<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(Within { inner: seed, room: self.room })
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, Visiting { visitor, room: self.room, counted: false })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, Visiting { visitor, room: self.room, counted: false })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, marker::PhantomData};

    use serde::Serialize;

    use super::super::{WireError, codec};
    use super::*;

    #[derive(Serialize, serde::Deserialize, Debug, PartialEq)]
    enum Tree {
        Leaf,
        Branch(Vec<Tree>),
        Named { name: String, next: Option<Box<Tree>> },
        Pair(Box<Tree>, Box<Tree>),
    }

    #[derive(Serialize, serde::Deserialize, Debug, PartialEq)]
    struct Chain(Option<Box<Chain>>);

    #[derive(Serialize, serde::Deserialize, Debug, PartialEq, Default)]
    struct All {
        numbers: (i8, i16, i32, i64, i128, u8, u16, u32, u64, u128),
        others: (bool, f32, f64, char, String, ()),
        lists: Vec<Option<Vec<u8>>>,
        map: BTreeMap<String, Vec<(u32, u32)>>,
        nothing: PhantomData<u8>,
    }

    fn encoded(value: &impl Serialize) -> Vec<u8> {
        let mut out = Vec::new();
        codec::encode_payload(value, &mut out).unwrap();
        out
    }

    fn chain(levels: usize) -> Vec<u8> {
        [vec![1; levels], vec![0]].concat()
    }

    #[test]
    fn what_holds_itself_is_read_to_a_depth_that_a_stack_has_room_for() {
        // A level is a struct and an option.
        let within = usize::from(DEEPEST) / 2 - 1;
        let read = codec::decode_payload::<Chain>(&chain(within)).unwrap();
        assert_eq!(encoded(&read), chain(within));
        for levels in [within + 1, 1000, 1 << 20] {
            assert_eq!(codec::decode_payload::<Chain>(&chain(levels)), Err(WireError::Malformed));
        }
        let branches = |levels| [[1, 1].repeat(levels), vec![0]].concat();
        assert!(codec::decode_payload::<Tree>(&branches(60)).is_ok());
        for bytes in [branches(1 << 20), [2, 0, 1].repeat(1 << 20), vec![3; 1 << 20]] {
            assert_eq!(codec::decode_payload::<Tree>(&bytes), Err(WireError::Malformed));
        }
    }

    #[test]
    fn elements_that_take_no_bytes_are_counted_all_the_same() {
        assert_eq!(codec::decode_payload(&encoded(&vec![(); 60_000])), Ok(vec![(); 60_000]));
        let claim = encoded(&u64::MAX);
        assert_eq!(codec::decode_payload::<Vec<()>>(&claim), Err(WireError::Malformed));
        assert_eq!(codec::decode_payload::<Vec<[u8; 0]>>(&claim), Err(WireError::Malformed));
        assert_eq!(codec::decode_payload::<BTreeMap<(), ()>>(&claim), Err(WireError::Malformed));
    }

    /// How many elements a list was told to expect, and how many came.
    #[derive(Debug, PartialEq)]
    struct Expected(Option<usize>, usize);

    impl<'de> Deserialize<'de> for Expected {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_seq(Expected(None, 0))
        }
    }

    impl<'de> Visitor<'de> for Expected {
        type Value = Self;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self, A::Error> {
            let hint = elements.size_hint();
            let mut count = 0;
            while elements.next_element::<u64>()?.is_some() {
                count += 1;
            }
            Ok(Self(hint, count))
        }
    }

    #[test]
    fn a_claimed_number_of_elements_reserves_nothing_to_speak_of() {
        for (elements, expected) in [(3, 3), (RESERVED, RESERVED), (10_000, RESERVED)] {
            let read = codec::decode_payload(&encoded(&vec![1_u64; elements]));
            assert_eq!(read, Ok(Expected(Some(expected), elements)));
        }
    }

    #[test]
    fn whatever_is_within_the_bounds_is_read_as_it_was_written() {
        let all = All {
            numbers: (-1, -2, -3, -4, -5, 1, 2, 3, 4, 5),
            others: (true, 0.5, -0.25, 'ß', "text".into(), ()),
            lists: vec![None, Some(vec![1, 2, 3]), Some(Vec::new())],
            map: BTreeMap::from([("a".into(), vec![(1, 2)]), ("b".into(), Vec::new())]),
            nothing: PhantomData,
        };
        assert_eq!(codec::decode_payload(&encoded(&all)), Ok(all));
        let tree = Tree::Branch(vec![
            Tree::Named { name: "n".into(), next: Some(Box::new(Tree::Leaf)) },
            Tree::Pair(Box::new(Tree::Leaf), Box::new(Tree::Branch(Vec::new()))),
        ]);
        assert_eq!(codec::decode_payload(&encoded(&tree)), Ok(tree));
        // A long list costs no depth.
        let long: Vec<u64> = (0..100_000).collect();
        assert_eq!(codec::decode_payload(&encoded(&long)), Ok(long));
    }
}
