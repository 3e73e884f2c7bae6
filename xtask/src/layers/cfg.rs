//! Which code is compiled for tests only.

use syn::{Attribute, Meta, Token, punctuated::Punctuated};

/// Whether these attributes remove what they stand on from every build that is no test.
pub(super) fn test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        path.segments.last().is_some_and(|last| last.ident == "test")
            || (path.is_ident("cfg") && attribute.parse_args().is_ok_and(|condition| needs_test(&condition)))
    })
}

/// Whether `#[cfg_attr(condition, …)]` adds its attributes in tests only.
pub(super) fn adds_in_tests_only(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg_attr")
        && attribute
            .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
            .is_ok_and(|parts| parts.first().is_some_and(needs_test))
}

fn needs_test(condition: &Meta) -> bool {
    match condition {
        Meta::Path(path) => path.is_ident("test"),
        Meta::NameValue(_) => false,
        Meta::List(list) => {
            let Ok(parts) = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) else {
                return false;
            };
            (list.path.is_ident("all") && parts.iter().any(needs_test))
                || (list.path.is_ident("any") && !parts.is_empty() && parts.iter().all(needs_test))
        }
    }
}

macro_rules! attributes_of {
    ($($function:ident($enum:ident): $($variant:ident)*;)*) => { $(
        pub(super) fn $function(node: &syn::$enum) -> &[Attribute] {
            match node {
                $(syn::$enum::$variant(inner) => &inner.attrs,)*
                _ => &[],
            }
        }
    )* };
}

attributes_of! {
    of_item(Item): Const Enum ExternCrate Fn ForeignMod Impl Macro Mod Static Struct Trait TraitAlias Type Union Use;
    of_impl_item(ImplItem): Const Fn Type Macro;
    of_trait_item(TraitItem): Const Fn Type Macro;
    of_expression(Expr): Array Assign Async Await Binary Block Break Call Closure Const Continue Field ForLoop If Let
        Lit Loop Macro Match MethodCall Paren Path Return Struct Try Tuple Unsafe While;
}

/// Of a statement that is no item.
pub(super) fn of_statement(statement: &syn::Stmt) -> &[Attribute] {
    match statement {
        syn::Stmt::Local(inner) => &inner.attrs,
        syn::Stmt::Macro(inner) => &inner.attrs,
        syn::Stmt::Expr(inner, _) => of_expression(inner),
        syn::Stmt::Item(_) => &[],
    }
}
