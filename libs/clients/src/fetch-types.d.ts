// The generated client names a type of the DOM library that Node's own types leave out.
type BodyInit = NonNullable<RequestInit['body']>;
